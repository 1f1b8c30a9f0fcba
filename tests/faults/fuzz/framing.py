"""Requests as bytes on a connection: as they should be, and in ways that HTTP forbids or allows rarely."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.fuzz.mutations import mutated_bytes

Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, before it is bytes."""

    method: str
    target: str
    headers: tuple[Header, ...]
    body: bytes

    def head(self, *more: Header, version: str = "HTTP/1.1", end: str = "\r\n") -> bytes:
        lines = [f"{self.method} {self.target} {version}", *(f"{name}: {value}" for name, value in self.all(*more))]
        return (end.join(lines) + end * 2).encode("latin-1", errors="replace")

    def all(self, *more: Header) -> tuple[Header, ...]:
        return (("Host", "fuzz"), *self.headers, *more)

    @property
    def raw(self) -> bytes:
        length = (("Content-Length", str(len(self.body))),) if self.body or self.method == "POST" else ()
        return self.head(*length) + self.body


def chunked(dice: random.Random, request: Request) -> bytes:
    """As it should be: pieces of any length, with extensions and trailers that nobody asked for."""
    raw, rest = request.head(("Transfer-Encoding", "chunked")), request.body
    while rest:
        num_bytes = dice.randint(1, min(len(rest), dice.choice((1, 7, 4096))) if len(rest) < 200 else len(rest))
        extension = dice.choice((b"", b"", b";a=b", b';a="b"', b";" + b"x" * 200))
        raw += f"{num_bytes:{dice.choice('xX')}}".encode() + extension + b"\r\n" + rest[:num_bytes] + b"\r\n"
        rest = rest[num_bytes:]
    return raw + b"0\r\n" + dice.choice((b"", b"", b"X-Trailer: a\r\n")) + b"\r\n"


def _bad_chunks(dice: random.Random, request: Request) -> bytes:
    head = request.head(("Transfer-Encoding", "chunked"))
    size = dice.choice((b"zz", b"-1", b"0x5", b"5 5", b"", b"F" * 16, b"1" + b"0" * 40, b" 5", b"+5", b"5\x0b", b"5\0"))
    good = b"%x\r\n%b\r\n" % (len(request.body), request.body)
    end = dice.choice((b"", b"0\r\n", b"0\r\n\r\n", b"0\r\n: a\r\n\r\n", b"0\n\n"))
    return head + dice.choice((size + b"\r\n" + request.body + b"\r\n" + end, good[:-2] + end, good + size + b"\r\n"))


def _lengths(dice: random.Random, request: Request) -> bytes:
    right = len(request.body)
    wrong = (
        right + 1,
        right + 1000,
        max(0, right - 1),
        0,
        -1,
        10**30,
        f"+{right}",
        f"{right} ",
        "0x10",
        "1e3",
        "",
        "a",
    )
    values = [dice.choice((right, *wrong)) for _ in range(dice.choice((1, 1, 2)))]
    return request.head(*(("Content-Length", str(value)) for value in values)) + request.body


def _encodings(dice: random.Random, request: Request) -> bytes:
    names = (
        "identity",
        "gzip, chunked",
        "chunked, chunked",
        "xchunked",
        "chunked\x0b",
        "Chunked ",
        "",
        "chunked, gzip",
    )
    more = [("Transfer-Encoding", dice.choice(names))]
    if dice.random() < 0.5:
        more.append(("Content-Length", str(len(request.body))))
    dice.shuffle(more)
    return request.head(*more) + dice.choice(
        (request.body, b"%x\r\n%b\r\n0\r\n\r\n" % (len(request.body), request.body))
    )


def _versions(dice: random.Random, request: Request) -> bytes:
    versions = ("HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.9", "HTTP/99999.1", "http/1.1", "HTTP/1", "", "HTTP/1.1 x")
    return request.head(("Content-Length", str(len(request.body))), version=dice.choice(versions)) + request.body


def _line_ends(dice: random.Random, request: Request) -> bytes:
    length = ("Content-Length", str(len(request.body)))
    before = dice.choice((b"", b"\r\n", b"\n" * 50, b"\0", b" ", b"\t"))
    return before + request.head(length, end=dice.choice(("\r\n", "\n", "\r", "\n\r", "\r\n\r"))) + request.body


def _header_lines(dice: random.Random, request: Request) -> bytes:
    line = dice.choice(
        (
            *(
                "No-Colon",
                ": no name",
                "Sp ace: a",
                "Tab\t: a",
                "A : b",
                "X: a\0b",
                "X: a\x7fb",
                "X: \xff\xfe",
                "\xff: a",
            ),
            *(
                "X: a\r\n folded",
                "X: a\r\n\tfolded",
                "X: " + "a" * 100_000,
                "\r\n".join(f"X-{n}: a" for n in range(2000)),
            ),
            *(
                "Host: other",
                "Upgrade: websocket\r\nConnection: Upgrade",
                "Upgrade: h2c",
                "Connection: close, keep-alive",
            ),
            *("Expect: 100-continue", "Expect: nothing", "Content-Encoding: gzip", "Range: bytes=0-1", "TE: trailers"),
        )
    )
    first, _, rest = request.raw.partition(b"\r\n")
    return first + b"\r\n" + line.encode("latin-1") + b"\r\n" + rest


def _request_lines(dice: random.Random, request: Request) -> bytes:
    method = dice.choice(("get", "G\0T", "", "CONNECT", "PRI", "TRACE", "M-SEARCH", "A" * 5000, "GET\t", "*"))
    target = dice.choice(
        (request.target, "*", "", "a", "http://other/v1/models", "//", "/\xff", "/a b", "host:80", "/\0")
    )
    return Request(method, target, request.headers, request.body).raw


def _broken_off(dice: random.Random, request: Request) -> bytes:
    return request.raw[: dice.randrange(len(request.raw))]


def _changed(dice: random.Random, request: Request) -> bytes:
    return mutated_bytes(dice, request.raw)


def _noise(dice: random.Random, request: Request) -> bytes:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
    return dice.choice((hello, preface, b"", b"\r\n" * 200, b"SSH-2.0-x\r\n")) + dice.randbytes(dice.randrange(2000))


HOSTILE: tuple[Callable[[random.Random, Request], bytes], ...] = (
    _bad_chunks,
    _lengths,
    _encodings,
    _versions,
    _line_ends,
    _header_lines,
    _request_lines,
    _broken_off,
    _changed,
    _noise,
)
