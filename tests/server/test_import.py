"""Sessions as files: exported here, imported there; and what is handed in as one and is none."""

import gzip
import os
import pickle
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from atlas_model.checkpoint import load_checkpoint
from atlas_model.training.documents import make_document
from atlas_model.training.synthetic_prose import SyntheticProse
from engine.snapshots.snapshot import max_snapshot_num_bytes
from server.config import SHIPPED_MODEL
from tests.engine.snapshot_cases import as_schema_1, header_end, with_header, with_header_bytes
from tests.engine.test_snapshot_hostile import FOREIGN_MSGPACK, LIES, put, put_tensor
from tests.golden.write import GOLDEN
from tests.server.harness import ThreadedServer, ask, assert_refused, new_name, sdk, serving, session_of

OCTETS = {"Content-Type": "application/octet-stream"}
TEXT = "The patient merchant sighed, and nobody remembered the rumour.\n"


@pytest.fixture(scope="module")
def there(model: Path) -> Iterator[httpx.Client]:
    """Another server with the same model and a store of its own."""
    with serving(model) as running, httpx.Client(base_url=running.base_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def snapshot(model: Path) -> bytes:
    """Of a session that has read, has been talked to, and has samples of its memory."""
    settings = {"memory_sample_tokens": "60", "ingest_commit_tokens": "60"}
    with serving(model, **settings) as server, httpx.Client(base_url=server.base_url, timeout=60) as client:
        client.post("/v1/sessions/s/ingest", json={"text": TEXT * 6})
        ask(client, "one", session_id="s")
        assert client.get("/v1/sessions/s/memory").json()["samples"]
        return client.get("/v1/sessions/s/export").content


def import_into(
    client: httpx.Client, raw: bytes | Iterator[bytes], headers: dict[str, str] | None = None, **params: Any
) -> httpx.Response:
    return client.post("/v1/sessions/import", content=raw, params=params, headers={**OCTETS, **(headers or {})})


def told(client: httpx.Client, session_id: str) -> Any:
    """What the session answers, without a trace in it."""
    return ask(client, "two", session_id=session_id, read_only=True, max_tokens=8).json()["choices"]


def test_a_session_that_is_exported_here_and_imported_there_goes_on_as_the_same(
    client: httpx.Client, there: httpx.Client, session_id: str
) -> None:
    client.post("/v1/sessions", json={"id": session_id, "metadata": {"book": "Emma"}, "ttl_seconds": 60})
    client.post(f"/v1/sessions/{session_id}/ingest", json={"text": TEXT * 4})
    ask(client, "one", session_id=session_id)
    here = session_of(client, session_id)
    exported = client.get(f"/v1/sessions/{session_id}/export")
    assert exported.status_code == 200, exported.text
    assert exported.headers["content-type"] == "application/octet-stream"
    assert int(exported.headers["content-length"]) == len(exported.content) == here["bytes"]
    name = f"session-{session_id}-v{here['version']}.atls"
    assert exported.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert exported.headers["x-session-version"] == str(here["version"])
    assert exported.content.startswith(b"ATLS")
    end = header_end(exported.content)
    assert exported.headers["etag"] == f'"{exported.content[end - 16 : end].hex()}"'

    imported = import_into(there, exported.content, id=session_id)
    assert imported.status_code == 200, imported.text
    session = session_of(there, session_id)
    assert imported.json() == {name: value for name, value in session.items() if name != "tokens_digest"}
    assert imported.headers["x-session-version"] == "0"
    assert (session["version"], session["metadata"], session["ttl_seconds"]) == (0, {"book": "Emma"}, None)
    assert (session["position"], session["tokens_digest"]) == (here["position"], here["tokens_digest"])
    assert told(there, session_id) == told(client, session_id)
    answers = [ask(each, "two", session_id=session_id).json() for each in (client, there)]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert session_of(there, session_id)["tokens_digest"] == session_of(client, session_id)["tokens_digest"]


def test_an_older_version_is_exported_by_its_number_or_its_name(
    client: httpx.Client, there: httpx.Client, session_id: str
) -> None:
    for text in ("one", "two", "three"):
        ask(client, text, session_id=session_id)
    path = f"/v1/sessions/{session_id}"
    client.post(f"{path}/versions", json={"name": "begin", "version": 1})
    by_number, by_name = (client.get(f"{path}/export", params={"version": version}) for version in ("1", "begin"))
    assert by_number.headers["x-session-version"] == "1"
    assert by_number.content == by_name.content
    import_into(there, by_name.content, id=f"{session_id}-begin")
    client.post(f"{path}/fork", json={"new_id": f"{session_id}-begin", "version": 1})
    digests = [session_of(each, f"{session_id}-begin")["tokens_digest"] for each in (client, there)]
    assert digests[0] == digests[1]
    for version in ("0", "9", "-1", "absent", "1e0", "9" * 64):
        assert_refused(client.get(f"{path}/export", params={"version": version}), 404, "version_not_found")
    for version in ("", "9" * 65):
        assert_refused(client.get(f"{path}/export", params={"version": version}), 400, "invalid_request", "version")


def test_there_is_nothing_to_export_before_something_was_read(client: httpx.Client, session_id: str) -> None:
    assert_refused(client.get(f"/v1/sessions/{session_id}/export"), 404, "session_not_found")
    client.post("/v1/sessions", json={"id": session_id})
    assert_refused(client.get(f"/v1/sessions/{session_id}/export"), 404, "version_not_found")


def test_the_name_of_the_file_is_safe_whatever_the_session_is_called(client: httpx.Client) -> None:
    for session_id, name in (("..a", "session-..a-v1.atls"), ("a:b", "session-a_b-v1.atls")):
        ask(client, "one", session_id=session_id)
        exported = client.get(f"/v1/sessions/{session_id.replace('.', '%2E')}/export")
        assert exported.headers["content-disposition"] == f'attachment; filename="{name}"'


def test_a_session_may_be_called_import(client: httpx.Client, snapshot: bytes) -> None:
    ask(client, "one", session_id="import")
    assert session_of(client, "import")["version"] == 1
    assert import_into(client, snapshot).json()["id"].startswith("s-")
    assert client.get("/v1/sessions/import/versions").json()["data"][0]["version"] == 1
    assert client.post("/v1/sessions/import/fork", json={}).json()["position"] > 0
    assert client.delete("/v1/sessions/import").json()["deleted"] is True
    assert import_into(client, snapshot, id="import").json()["id"] == "import"


def test_a_session_is_not_imported_over_another(client: httpx.Client, session_id: str, snapshot: bytes) -> None:
    ask(client, "one", session_id=session_id)
    before = session_of(client, session_id)
    refused = import_into(client, snapshot, id=session_id)
    assert_refused(refused, 409, "session_exists")
    assert refused.headers["x-should-retry"] == "false"
    assert session_of(client, session_id) == before


def test_an_import_that_is_repeated_is_made_once(
    server: ThreadedServer, client: httpx.Client, session_id: str, snapshot: bytes
) -> None:
    with sdk(server.base_url, max_retries=2) as library:
        made: Any = library.post(
            f"/sessions/import?id={session_id}", cast_to=object, content=snapshot, options={"headers": OCTETS}
        )
    assert made["id"] == session_id
    retried = {"x-stainless-retry-count": "1"}
    assert import_into(client, snapshot, retried, id=session_id).json() == made
    assert_refused(import_into(client, as_schema_1(snapshot), retried, id=session_id), 409, "session_exists")
    assert_refused(import_into(client, snapshot, id=session_id), 409, "session_exists")
    key = {"Idempotency-Key": new_name("key")}
    first, again = (import_into(client, snapshot, key) for _ in range(2))
    assert first.status_code == 200, first.text
    assert first.json() == again.json()
    assert_refused(import_into(client, as_schema_1(snapshot), key), 409, "idempotency_mismatch")


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"id": "a b"}, "session_id"),
        ({"id": ""}, "session_id"),
        ({"id": "a\r\nX-Injected: 1"}, "id"),
        ({"ttl_seconds": "0"}, "ttl_seconds"),
        ({"ttl_seconds": str(2**31 + 1)}, "ttl_seconds"),
        ({"ttl_seconds": "soon"}, "ttl_seconds"),
    ],
)
def test_a_session_is_not_imported_under_an_impossible_name_or_for_an_impossible_time(
    client: httpx.Client, snapshot: bytes, params: dict[str, Any], param: str
) -> None:
    assert_refused(import_into(client, snapshot, **params), 400, "invalid_request", param)


def test_an_imported_session_may_have_a_time_to_live(client: httpx.Client, snapshot: bytes) -> None:
    assert import_into(client, snapshot, ttl_seconds=3600).json()["ttl_seconds"] == 3600


def test_a_snapshot_of_an_older_schema_is_still_a_session(client: httpx.Client, snapshot: bytes) -> None:
    old, new = (import_into(client, raw).json()["id"] for raw in (as_schema_1(snapshot), snapshot))
    assert told(client, old) == told(client, new)
    assert client.get(f"/v1/sessions/{old}/memory").json()["samples"] == []


def test_a_snapshot_of_a_newer_schema_is_refused_as_such(client: httpx.Client, snapshot: bytes) -> None:
    refused = import_into(client, with_header(snapshot, put("schema", 99)))
    assert_refused(refused, 422, "state_too_new")
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("snapshot-v*.atls")), ids=lambda path: path.stem)
def test_another_models_snapshot_is_refused_with_both_fingerprints(client: httpx.Client, path: Path) -> None:
    refused = import_into(client, path.read_bytes())
    assert_refused(refused, 422, "state_model_mismatch")
    message = refused.json()["error"]["message"]
    assert "0123456789abcdef" in message
    assert client.get("/version").json()["fingerprint"] in message


class Spoiler:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self._path,)


def test_what_is_no_session_is_refused_in_one_shape_and_leaves_nothing_behind(
    client: httpx.Client, snapshot: bytes, tmp_path: Path
) -> None:
    flipped = bytearray(snapshot)
    flipped[-100] ^= 1
    # What is a lie about one model may be true of another.
    forged = [raw for lie in LIES if (raw := with_header(snapshot, lie)) != snapshot]
    assert len(forged) >= len(LIES) - 1
    forged += [
        with_header_bytes(snapshot, packed + end)
        for packed in FOREIGN_MSGPACK
        for end in (bytes(16), b"\xc4\x10" + bytes(16))
    ]
    forged += [with_header(snapshot, lie) for lie in (put_tensor(1, 2, [2**38]), put_tensor(1, 4, 2**40))]
    foreign = [
        b"",
        b"ATLS",
        b"ATLS\xff\xff\xff\xff",
        b"ATLS\x00\x00\x10\x00" + bytes(2**20),
        snapshot[:-1],
        snapshot[:100],
        snapshot + b"x",
        snapshot + snapshot[-4096:],
        bytes(flipped),
        bytes(len(snapshot)),
        gzip.compress(snapshot),
        gzip.compress(bytes(10**8)),
        pickle.dumps(Spoiler(tmp_path / "spoilt")),
        b"ATLS\x00\x00\x00\x40" + pickle.dumps(Spoiler(tmp_path / "spoilt")),
        b"\xff\xfe{}",
    ]
    for raw in [*forged, *foreign]:
        refused = import_into(client, raw, id="never")
        assert_refused(refused, 422, "invalid_state")
        assert refused.headers["x-should-retry"] == "false"
    assert_refused(client.get("/v1/sessions/never"), 404, "session_not_found")
    assert not (tmp_path / "spoilt").exists()
    assert import_into(client, with_header(snapshot, lambda _: None), id="never").status_code == 200


def test_only_plain_bytes_are_taken(client: httpx.Client, snapshot: bytes) -> None:
    for headers in (
        {"Content-Type": "application/json"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Encoding": "gzip"},
    ):
        assert_refused(import_into(client, snapshot, headers), 415, "unsupported_media_type")
    bare = client.post("/v1/sessions/import", content=snapshot)
    assert bare.status_code == 200, bare.text
    assert "content-type" not in bare.request.headers


def resident_num_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_more_than_any_session_has_is_refused_early_and_takes_no_memory(
    server: ThreadedServer, client: httpx.Client, snapshot: bytes
) -> None:
    most = max_snapshot_num_bytes(server.runtime.serving().checkpoint.model.config)
    assert len(snapshot) < most < 4 * 2**20
    assert_refused(import_into(client, bytes(most)), 422, "invalid_state")
    assert_refused(import_into(client, bytes(most + 1)), 413, "body_too_large")
    before = resident_num_bytes()
    # Whoever sends on is not read into memory.
    assert_refused(import_into(client, iter([bytes(2**16)] * 4000)), 413, "body_too_large")
    head = b"POST /v1/sessions/import HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    chunk = hex(most + 1)[2:].encode() + b"\r\n" + bytes(most + 1) + b"\r\n"
    for beginning in (
        b"Content-Length: 1000000000000\r\n\r\n",
        b"Content-Length: " + b"9" * 19 + b"\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + chunk,
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(head + beginning)
            assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert resident_num_bytes() - before < 32 * 2**20


def test_an_import_that_is_cut_off_makes_nothing(server: ThreadedServer, client: httpx.Client, snapshot: bytes) -> None:
    head = b"POST /v1/sessions/import?id=cut HTTP/1.1\r\nHost: x\r\nContent-Length: "
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head + str(len(snapshot)).encode() + b"\r\n\r\n" + snapshot[:-1])
    assert import_into(client, snapshot, id="whole").status_code == 200
    assert client.get("/v1/sessions/cut").status_code == 404


@pytest.mark.timeout(120)
def test_a_document_that_the_shipped_model_read_here_is_known_there() -> None:
    tokenizer = load_checkpoint(SHIPPED_MODEL).tokenizer
    document = make_document(random.Random(3), SyntheticProse(), tokenizer, num_tokens=400, num_facts=6)

    def answers(client: httpx.Client) -> list[str]:
        asked = (
            ask(client, question.text, session_id="book", read_only=True, max_tokens=12)
            for question in document.questions
        )
        return [answer.json()["choices"][0]["message"]["content"].strip() for answer in asked]

    with serving(SHIPPED_MODEL, threads="1") as server, httpx.Client(base_url=server.base_url, timeout=60) as here:
        here.post("/v1/sessions/book/ingest", json={"text": document.text})
        known, digest = answers(here), session_of(here, "book")["tokens_digest"]
        snapshot = here.get("/v1/sessions/book/export").content
    with serving(SHIPPED_MODEL, threads="1") as server, httpx.Client(base_url=server.base_url, timeout=60) as there:
        assert import_into(there, snapshot, id="book").status_code == 200
        assert answers(there) == known
        assert session_of(there, "book")["tokens_digest"] == digest
    expected = [question.answer for question in document.questions]
    assert sum(told == right for told, right in zip(known, expected, strict=True)) >= 0.8 * len(expected)
