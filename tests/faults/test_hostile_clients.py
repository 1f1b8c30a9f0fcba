"""Clients that want to be taken for a header, for a line of the log, or for somebody else."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from bench.summary import percentile
from tests.faults.figures import tell
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import ThreadedServer, ask, assert_refused, raw_answer, serving, user

NUM_TIMINGS = 150
# As often as that again, while the machine's other work still shows in the figure.
MAX_ROUNDS = 4
# Of all timings of a kind, the one that a tenth are below: what a request takes when nothing comes between.
UNDISTURBED_PERCENT = 10
INJECTED = "x\r\nX-Injected: yes\r\n\r\n2026-01-01 INFO server.requests {}"


@pytest.fixture
def talkative(forker: Forker, model: Path, tmp_path: Path) -> Iterator[ForkedServer]:
    """A process whose log tells every request."""
    with ForkedServer(forker, tmp_path, model=str(model), store="memory://", log_level="info") as server:
        yield server


def test_nothing_that_a_client_sends_becomes_a_header_or_a_line_of_the_log(talkative: ForkedServer) -> None:
    client = talkative.client
    refused = ask(client, INJECTED, session_id=INJECTED)
    assert_refused(refused, 400, "invalid_request", "session_id")
    accepted = ask(client, INJECTED, user=INJECTED, metadata={INJECTED[:10]: INJECTED})
    assert accepted.status_code == 200, accepted.text
    encoded = client.get("/v1/sessions/a%0D%0AX-Injected:%20yes%0A{}?x=%0Ay")
    unknown = client.get("/%0A2026-01-01%20INFO%20server.requests%20{}%1B[2J")
    for response in (refused, accepted, encoded, unknown):
        assert "x-injected" not in response.headers
        assert INJECTED not in json.dumps(dict(response.headers))

    for name in ("X-Request-Id", "X-Session-Id", "Idempotency-Key", "Authorization", "User-Agent", "If-Match"):
        for value in ("a\r\n b", "a\rX-Injected: yes", "a\x00b", "a\x1b[2Jb", "a\u0085b"):
            head = f"GET /v1/sessions/absent HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{name}: {value}\r\n\r\n"
            answer = raw_answer(talkative.port, head.encode("latin-1"))
            assert b"x-injected" not in answer.lower().partition(b"\r\n\r\n")[0]
            assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), answer

    for line in talkative.log.splitlines():
        told = json.loads(line)
        assert told["logger"].partition(".")[0] in ("server", "engine", "uvicorn"), line
        assert line.isascii(), line
        assert line.isprintable(), line
        assert told["logger"] != "server.requests" or told["request_id"]


@pytest.fixture(scope="module")
def guarded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    store = f"local://{tmp_path_factory.mktemp('guarded') / 'sessions'}"
    with serving(model, store=store, api_keys="acme:acme-key,globex:globex-key") as running:
        yield running


Probe = Callable[[httpx.Client, str], httpx.Response]
PROBES: dict[str, Probe] = {
    "told": lambda client, name: client.get(f"/v1/sessions/{name}"),
    "memory": lambda client, name: client.get(f"/v1/sessions/{name}/memory"),
    "exported": lambda client, name: client.get(f"/v1/sessions/{name}/export"),
    "versions": lambda client, name: client.get(f"/v1/sessions/{name}/versions"),
    "rewound": lambda client, name: client.post(f"/v1/sessions/{name}/rewind", json={"version": 1}),
    "deleted": lambda client, name: client.delete(f"/v1/sessions/{name}"),
    "asked": lambda client, name: ask(client, "?", session_id=name, read_only=True),
    "continued": lambda client, name: client.post(f"/v1/sessions/{name}/ingest", params={"offset": 7}, content=b"text"),
    "conditional": lambda client, name: ask(client, "?", {"If-Match": '"1"'}, session_id=name),
}


@pytest.mark.parametrize("probe", PROBES)
def test_guessing_anothers_session_is_answered_as_an_absent_one_in_body_headers_and_time(
    guarded: ThreadedServer, probe: str
) -> None:
    with (
        httpx.Client(base_url=guarded.base_url, headers={"Authorization": "Bearer acme-key"}, timeout=60) as acme,
        httpx.Client(base_url=guarded.base_url, headers={"Authorization": "Bearer globex-key"}, timeout=60) as globex,
    ):
        ask(acme, "our secret", session_id="theirs")
        seconds: dict[str, list[float]] = {"theirs": [], "absent": []}
        answers: dict[str, httpx.Response] = {}
        ratio = 0.0
        for _ in range(MAX_ROUNDS):
            for name in itertools.islice(itertools.cycle(("theirs", "absent", "absent", "theirs")), 2 * NUM_TIMINGS):
                started = time.perf_counter()
                answers[name] = PROBES[probe](globex, name)
                seconds[name].append(time.perf_counter() - started)
            undisturbed = {name: percentile(each, UNDISTURBED_PERCENT) for name, each in seconds.items()}
            ratio = undisturbed["theirs"] / undisturbed["absent"]
            if 0.8 < ratio < 1.25:
                break
        theirs, absent = answers["theirs"], answers["absent"]
        assert theirs.status_code in (404, 409, 412)
        assert (theirs.status_code, theirs.content) == (absent.status_code, absent.content)
        differing = {"x-request-id", "date"}
        assert {k: v for k, v in theirs.headers.items() if k not in differing} == {
            k: v for k, v in absent.headers.items() if k not in differing
        }
        tell(f"{probe}: {ratio:.3f} of the time")
        assert 0.8 < ratio < 1.25
        assert acme.get("/v1/sessions/theirs").json()["version"] == 1
        acme.delete("/v1/sessions/theirs").raise_for_status()


@pytest.mark.parametrize(
    "session_id",
    [
        "a\r\nb",
        "a\n",
        "\na",
        ".",
        "..",
        "{a}",
        "a}",
        "a/b",
        "../a",
        "a%2Fb",
        "ａ",
        "а",
        "a\u200b",
        "a" * 5000,
        "a\0",
        "",
    ],
)
def test_an_odd_session_id_is_refused_wherever_it_is_named(guarded: ThreadedServer, session_id: str) -> None:
    with httpx.Client(base_url=guarded.base_url, headers={"Authorization": "Bearer acme-key"}, timeout=60) as client:
        assert_refused(ask(client, "?", session_id=session_id), 400, "invalid_request", "session_id")
        refused = client.post("/v1/sessions", json={"id": session_id})
        assert refused.status_code == 400, refused.text
        if "\n" not in session_id and "\r" not in session_id and "\0" not in session_id:
            headers = [(b"Content-Type", b"application/json"), (b"X-Session-Id", session_id.encode())]
            body = json.dumps({"messages": [user("?")]})
            refused = client.post("/v1/chat/completions", content=body, headers=headers)
            assert_refused(refused, 400, "invalid_request", "session_id")
        assert client.get("/v1/sessions").json()["data"] == []
