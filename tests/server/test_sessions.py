"""/v1/sessions: create, list, tell, delete; and what a session's state in the store may do to a request."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.harness import (
    ThreadedServer,
    ask,
    assert_refused,
    new_name,
    open_stream,
    read_until,
    serving,
    session_of,
    until,
)


def test_a_created_session_has_read_nothing_and_goes_on_from_there(client: httpx.Client, session_id: str) -> None:
    created = client.post("/v1/sessions", json={"id": session_id, "metadata": {"book": "Emma"}})
    assert created.status_code == 200, created.text
    body = created.json()
    assert (body["id"], body["version"], body["position"], body["bytes"]) == (session_id, 0, 0, 0)
    assert created.headers["x-session-version"] == "0"
    told = session_of(client, session_id)
    assert told.pop("tokens_digest") == "00" * 16
    assert told == body
    refused = client.post("/v1/sessions", json={"id": session_id})
    assert_refused(refused, 409, "session_exists")
    assert refused.headers["x-should-retry"] == "false"
    first = ask(client, "a", {"If-Match": "0"}, session_id=session_id).json()
    assert first["session"]["version"] == 1
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    after = session_of(client, session_id)
    assert after["metadata"] == {"book": "Emma"}
    assert after["created"] == body["created"]
    assert after["last_used"] >= body["created"]
    assert after["bytes"] > 0


def test_a_sessions_memory_is_told_as_numbers_and_asking_changes_nothing(client: httpx.Client, session_id: str) -> None:
    client.post("/v1/sessions", json={"id": session_id})
    empty = client.get(f"/v1/sessions/{session_id}/memory").json()
    assert (empty["object"], empty["version"], empty["position"], empty["heads"]) == ("session.memory", 0, 0, [])
    ask(client, "a b c", session_id=session_id)
    before = session_of(client, session_id)
    told = client.get(f"/v1/sessions/{session_id}/memory")
    assert told.headers["x-session-version"] == "1"
    body = told.json()
    assert body["position"] == before["position"]
    assert {(head["layer"], head["head"]) for head in body["heads"]} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert any(head["matrices"]["w"]["distance_from_initial"] > 0 for head in body["heads"])
    assert session_of(client, session_id)["version"] == 1
    assert_refused(client.get(f"/v1/sessions/{new_name()}/memory"), 404, "session_not_found")


def test_samples_of_a_memory_are_kept_with_the_session_when_the_server_starts_anew(model: Path, tmp_path: Path) -> None:
    settings = {"store": f"local://{tmp_path / 'sessions'}", "memory_sample_tokens": "60", "ingest_commit_tokens": "60"}
    text = "The patient merchant sighed, and nobody remembered the rumour.\n" * 8
    told = []
    for _ in range(2):
        with serving(model, **settings) as server, httpx.Client(base_url=server.base_url, timeout=60) as client:
            told.append(client.get("/v1/sessions/s/memory"))
            assert client.post("/v1/sessions/s/ingest", json={"text": text}).status_code == 200
            told.append(client.get("/v1/sessions/s/memory"))
            counted = client.get("/metrics").text
    absent, first, second, third = told
    assert absent.status_code == 404
    samples = first.json()["samples"]
    assert len(samples) > 0
    assert second.json()["samples"] == samples
    longer = third.json()["samples"]
    assert longer[: len(samples)] == samples
    assert len(longer) > len(samples)
    assert {layer["layer"] for sample in longer for layer in sample["layers"]} == {0, 1}
    new = [sample["layers"][1] for sample in longer[len(samples) :]]
    assert f'atlas_memory_norm_count{{layer="1"}} {float(len(new))}' in counted
    for name, field in (("norm", "norm"), ("token_gate", "token_gate"), ("share", "memory_share")):
        found = re.search(rf'^atlas_memory_{name}_sum{{layer="1"}} (\S+)$', counted, re.MULTILINE)
        assert found, name
        assert float(found[1]) == pytest.approx(sum(layer[field] for layer in new), rel=1e-6)
    series = re.findall(r"^atlas_memory_\w+_count(.*) ", counted, re.MULTILINE)
    assert set(series) == {'{layer="0"}', '{layer="1"}'}


def test_a_session_may_be_created_without_an_id_and_without_a_body(client: httpx.Client) -> None:
    first, second = client.post("/v1/sessions").json(), client.post("/v1/sessions", json={}).json()
    assert first["id"] != second["id"]
    assert session_of(client, first["id"])["version"] == 0


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"id": "a b"}, "invalid_request", "session_id"),
        ({"id": ""}, "invalid_request", "session_id"),
        ({"id": 7}, "invalid_request", "id"),
        ({"metadata": {"a": 1}}, "invalid_request", "metadata"),
        ({"ttl_seconds": 0}, "invalid_request", "ttl_seconds"),
        ({"from": "x"}, "invalid_request", "from"),
        ({"from": {}}, "invalid_request", "from.session_id"),
        ({"from": {"session_id": "a b"}}, "invalid_request", "session_id"),
        ({"from": {"session_id": "x", "version": -1}}, "invalid_request", "from.version"),
        ({"from": {"session_id": "x", "version": 1.5}}, "invalid_request", "from.version"),
        ({"from": {"session_id": "x", "version": ""}}, "invalid_request", "from.version"),
        ({"from": {"session_id": "x", "version": True}}, "invalid_request", "from.version"),
        ({"source": {"session_id": "x"}}, "invalid_request", "source"),
        ({"nonsense": 1}, "invalid_request", "nonsense"),
        ({"No Name!": 1}, "invalid_request", None),
    ],
)
def test_a_session_is_not_created_from_nonsense(
    client: httpx.Client, body: dict[str, object], code: str, param: str | None
) -> None:
    assert_refused(client.post("/v1/sessions", json=body), 400, code, param)


def test_a_session_may_have_a_time_to_live(client: httpx.Client, session_id: str) -> None:
    client.post("/v1/sessions", json={"id": session_id, "ttl_seconds": 3600})
    ask(client, "a", session_id=session_id)
    assert session_of(client, session_id)["ttl_seconds"] == 3600


def test_the_list_comes_in_pages(client: httpx.Client) -> None:
    names = sorted(new_name("page") for _ in range(5))
    for name in names:
        client.post("/v1/sessions", json={"id": name})
    listed, after = [], "page"
    while True:
        page = client.get("/v1/sessions", params={"limit": 2, "after": after}).json()
        listed += [session["id"] for session in page["data"] if session["id"].startswith("page-")]
        assert len(page["data"]) <= 2
        if not page["has_more"]:
            break
        after = page["data"][-1]["id"]
    assert listed == names
    for limit in ("0", "1001", "x"):
        assert_refused(client.get("/v1/sessions", params={"limit": limit}), 400, "invalid_request", "limit")


def test_a_deleted_session_is_a_404(client: httpx.Client, session_id: str) -> None:
    ask(client, "a", session_id=session_id)
    assert client.delete(f"/v1/sessions/{session_id}").json() == {
        "id": session_id,
        "object": "session.deleted",
        "deleted": True,
    }
    assert_refused(client.get(f"/v1/sessions/{session_id}"), 404, "session_not_found")
    assert_refused(client.delete(f"/v1/sessions/{session_id}"), 404, "session_not_found")


def test_a_session_survives_its_server_bit_for_bit(server: ThreadedServer, tmp_path: Path) -> None:
    """Two servers of one store, one after the other, against one that ran through."""

    def one_turn(running: ThreadedServer, text: str) -> tuple[Any, Any, str]:
        with httpx.Client(base_url=running.base_url, timeout=60) as client:
            body = ask(client, text, session_id="s", max_tokens=8, temperature=1, seed=3).json()
            return body["choices"], body["usage"], session_of(client, "s")["tokens_digest"]

    model, store = server.config.model, f"local://{tmp_path / 'sessions'}"
    with serving(model, store=store) as first:
        one_turn(first, "one")
    with serving(model, store=store) as second:
        resumed = one_turn(second, "two")
    with serving(model) as uninterrupted:
        one_turn(uninterrupted, "one")
        assert one_turn(uninterrupted, "two") == resumed


def test_one_writes_one_waits_and_more_are_sent_away(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    ask(client, "a", session_id=session_id)
    endless = {"session_id": session_id, "stream": True, "max_tokens": 30_000, "ignore_eos": True}
    with open_stream(server.port, "b", endless) as writing:
        read_until(writing, b"data: ")
        with open_stream(server.port, "c", endless) as waiting:
            waiting.settimeout(0.3)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            refused = ask(client, "d", session_id=session_id)
            assert_refused(refused, 409, "session_busy")
            assert refused.headers["retry-after"] == "1"
            assert "x-should-retry" not in refused.headers
    until(lambda: server.num_slots_in_use == 0)
    assert session_of(client, session_id)["version"] == 1
