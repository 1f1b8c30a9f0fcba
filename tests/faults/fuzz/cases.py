"""One request after the other, each drawn from a seed and its number: valid ones, and valid ones that were spoilt."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.faults.fuzz.framing import HOSTILE, Header, Request, chunked
from tests.faults.fuzz.mutations import ODD, TOKENS, dumped, mutated, mutated_bytes
from tests.faults.fuzz.operations import JSON, SESSIONS, Drawer, Ids, Operation, operations_of

MAX_NUM_PIECES = 20


@dataclass(frozen=True, slots=True)
class Case:
    """pieces: what is written, one after the other. is_whole: one request, which must get one answer; other bytes may
    be closed upon, and are followed by the end of what the client sends."""

    number: int
    kind: str
    pieces: tuple[bytes, ...]
    is_whole: bool = True
    has_body: bool = True


class Cases:
    """snapshot: a session as `/export` gives it, of which imports are made."""

    def __init__(self, document: Mapping[str, Any], seed: int, snapshot: bytes) -> None:
        self.ids = Ids()
        self._seed = seed
        self._snapshot = snapshot
        self._operations = operations_of(document)
        self._with_json = [operation for operation in self._operations if JSON in operation.bodies]
        self._drawer = Drawer(document, self.ids)

    def case(self, number: int) -> Case:
        dice = random.Random(f"{self._seed}:{number}")
        kinds, weights = zip(*_KINDS.items(), strict=True)
        draw: Callable[[Cases, int, random.Random], Case] = dice.choices(kinds, weights)[0]
        return draw(self, number, dice)

    def valid(self, number: int, dice: random.Random) -> Case:
        return Case(number, "valid", (self._request(dice, dice.choice(self._operations)).raw,))

    def odd_json(self, number: int, dice: random.Random) -> Case:
        operation = dice.choice(self._with_json)
        body = dumped(dice, mutated(dice, self._drawer.value(dice, operation.bodies[JSON])))
        return Case(number, "odd JSON", (self._posted(dice, operation, body).raw,))

    def odd_bytes(self, number: int, dice: random.Random) -> Case:
        operation = dice.choice(self._with_json)
        body = dumped(dice, self._drawer.value(dice, operation.bodies[JSON]))
        return Case(number, "odd bytes", (self._posted(dice, operation, mutated_bytes(dice, body)).raw,))

    def odd_headers(self, number: int, dice: random.Random) -> Case:
        request = self._request(dice, dice.choice(self._operations))
        headers = list(request.headers)
        for _ in range(dice.randint(1, 4)):
            name = dice.choice(tuple(_HEADERS))
            headers.append((name, dice.choice((*_HEADERS[name], *_ODD_HEADER_VALUES))))
        odd = Request(request.method, request.target, tuple(headers), request.body)
        return Case(number, "odd headers", (odd.raw,))

    def odd_targets(self, number: int, dice: random.Random) -> Case:
        request = self._request(dice, dice.choice(self._operations))
        method = dice.choice((request.method, "GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "POST"))
        odd = Request(method, _odd_target(dice, request.target), request.headers, request.body)
        return Case(number, "odd targets", (odd.raw,), has_body=method != "HEAD")

    def in_pieces(self, number: int, dice: random.Random) -> Case:
        request = self._request(dice, dice.choice(self._operations))
        raw = chunked(dice, request) if request.body and dice.random() < 0.7 else request.raw
        cuts = sorted(dice.randrange(len(raw)) for _ in range(dice.randrange(MAX_NUM_PIECES)))
        pieces = tuple(raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True))
        return Case(number, "in pieces", pieces)

    def imported(self, number: int, dice: random.Random) -> Case:
        body = mutated_bytes(dice, self._snapshot) if dice.random() < 0.8 else self._snapshot
        target = f"/v1/sessions/import?id={dice.choice(SESSIONS)}"
        request = Request("POST", target, (("Content-Type", "application/octet-stream"),), body)
        return Case(number, "imported", (request.raw,))

    def hostile(self, number: int, dice: random.Random) -> Case:
        frame = dice.choice(HOSTILE)
        raw = frame(dice, self._request(dice, dice.choice(self._operations)))
        return Case(number, f"hostile: {frame.__name__.strip('_')}", (raw,), is_whole=False)

    def pipelined(self, number: int, dice: random.Random) -> Case:
        requests = [self._request(dice, dice.choice(self._operations)).raw for _ in range(dice.randint(2, 5))]
        return Case(number, "pipelined", (b"".join(requests),), is_whole=False)

    def _request(self, dice: random.Random, operation: Operation) -> Request:
        if JSON in operation.bodies:
            return self._posted(dice, operation, dumped(dice, self._drawer.value(dice, operation.bodies[JSON])))
        return Request(operation.method, self._drawer.target(dice, operation), _some_headers(dice), b"")

    def _posted(self, dice: random.Random, operation: Operation, body: bytes) -> Request:
        is_plain = operation.path.endswith("/ingest") and dice.random() < 0.3
        kind: Header = ("Content-Type", "text/plain" if is_plain else JSON)
        headers = (kind, *_some_headers(dice))
        return Request(operation.method, self._drawer.target(dice, operation), headers, body)


_KINDS: dict[Callable[[Cases, int, random.Random], Case], int] = {
    Cases.valid: 25,
    Cases.odd_json: 35,
    Cases.odd_bytes: 10,
    Cases.odd_headers: 7,
    Cases.odd_targets: 7,
    Cases.in_pieces: 3,
    Cases.imported: 2,
    Cases.hostile: 9,
    Cases.pipelined: 2,
}

_ODD_HEADER_VALUES = ("", " ", "a", "0", "-1", "9" * 400, "a" * 3000, '"', "\xff\xfe", "a,b", "a;b=c", "*", "\t a")
_HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Type": (JSON, "application/json; charset=utf-16", "text/plain", "multipart/form-data", "a/b;;="),
    "Content-Encoding": ("gzip", "identity", "br"),
    "Accept": ("text/event-stream", "*/*", "application/xml;q=0"),
    "Accept-Encoding": ("gzip", "identity;q=0"),
    "Authorization": ("Bearer a", "Basic YTpi", "Bearer \xe9"),
    "X-Session-Id": (*SESSIONS, "a/b", "..", "a" * 129),
    "X-Request-Id": ("abc", "a b"),
    "Idempotency-Key": ("once", "twice", "\xe9"),
    "If-Match": ('"1"', "2", 'W/"1"', "*"),
    "If-None-Match": ("*",),
    "X-Stainless-Retry-Count": ("1", "99999999999999999999", "-1", "\xb2"),
    "Origin": ("http://example.com", "null"),
    "Access-Control-Request-Method": ("POST",),
    "X-Forwarded-For": ("1.2.3.4", "a, b"),
    "X-Forwarded-Proto": ("https", "a"),
    "Range": ("bytes=0-1", "bytes=-9"),
    "Cookie": ("a=b; c",),
    "Connection": ("keep-alive", "upgrade"),
    "Expect": ("100-continue",),
    "OpenAI-Beta": ("assistants=v2",),
}


def _some_headers(dice: random.Random) -> tuple[Header, ...]:
    """What clients of ours say now and then."""
    wanted = (("X-Session-Id", dice.choice(SESSIONS)), 0.2), (("Idempotency-Key", dice.choice("abcdef")), 0.05)
    events = (("Accept", "text/event-stream"), 0.05), (("X-Stainless-Retry-Count", "1"), 0.05)
    return tuple(header for header, share in (*wanted, *events) if dice.random() < share)


def _odd_target(dice: random.Random, target: str) -> str:
    path, _, query = target.partition("?")
    segments = path.split("/")
    place = dice.randrange(1, len(segments))
    match dice.randrange(6):
        case 0:
            odd = dice.choice([value for value in ODD if isinstance(value, str)])
            segments[place] = quote(odd, safe="", errors="replace")[:4000]
        case 1:
            segments[place] = quote(dice.choice(TOKENS), safe="")
        case 2:
            segments.insert(place, dice.choice(("", ".", "..", "%2e%2e", "%2f", "a", "%", "%zz", "%00", ";")))
        case 3:
            segments = [quote(segment[:1]).replace("%", "%25") + segment[1:] for segment in segments]
        case 4:
            names = ("limit", "after", "offset", "document_id", "version", "id", "ttl_seconds", "stream", "replicas")
            values = ("", "-1", "1e3", "9" * 30, "%00", "%ff", "a", "1.5", "true", "[]", "%D9%A3")
            query += "".join(f"&{dice.choice(names)}={dice.choice(values)}" for _ in range(dice.randint(1, 4)))
        case 5:
            query += "&" + "a=b&" * dice.choice((1, 300)) + "=" + "%" * dice.randrange(4)
    return "/".join(segments) + (f"?{query}" if query else "")
