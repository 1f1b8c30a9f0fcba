"""Quotas and deletion as a client meets them: by key, in one shape, and nothing left on the disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.redis_server import RedisServer
from tests.server.harness import ThreadedServer, ask, assert_refused, serving, session_of

KEYS = "acme:acme-key, globex:globex-key"
MARK = "private-mark"


@pytest.fixture(params=["memory", "local", pytest.param("redis", marks=pytest.mark.redis)])
def limited(model: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ThreadedServer]:
    """Two sessions for each tenant."""
    store = {"memory": "memory://", "local": f"local://{tmp_path / 'sessions'}"}.get(request.param)
    if store is None:
        redis_server: RedisServer = request.getfixturevalue("redis_server")
        store = f"{redis_server.url}?prefix=quotas"
    with serving(model, api_keys=KEYS, store=store, tenant_max_sessions="2") as running:
        yield running


def holder(server: ThreadedServer, key: str) -> httpx.Client:
    return httpx.Client(base_url=server.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def ids(client: httpx.Client) -> list[str]:
    return [session["id"] for session in client.get("/v1/sessions").json()["data"]]


def fed(client: httpx.Client) -> list[str]:
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("atlas_prompt_tokens_total")]
    assert found
    return found


def test_a_tenant_at_its_quota_is_refused_and_another_is_not_touched(limited: ThreadedServer) -> None:
    with holder(limited, "acme-key") as acme, holder(limited, "globex-key") as globex:
        for name in ("a", "b"):
            assert ask(acme, "Hi", session_id=name).status_code == 200
        before = fed(acme)
        refusals = [
            acme.post("/v1/sessions", json={"id": "c"}),
            ask(acme, "Hi", session_id="c"),
            ask(acme, "Hi", session_id="c", stream=True),
            acme.post("/v1/sessions/c/ingest", content=b"a document"),
            acme.post("/v1/sessions/c/ingest", content=b"a document", headers={"Accept": "text/event-stream"}),
        ]
        for refused in refusals:
            assert_refused(refused, 507, "store_full")
            assert refused.headers["x-should-retry"] == "false"
            assert "the quota is 2 sessions, and 2 are stored" in refused.json()["error"]["message"]
        assert fed(acme) == before
        assert ids(acme) == ["a", "b"]
        assert_refused(acme.get("/v1/sessions/c"), 404, "session_not_found")

        # Neither the quota nor a guess tells one tenant of another.
        guesses = [globex.get(f"/v1/sessions/{name}") for name in ("a", "never")]
        assert guesses[0].json() == guesses[1].json()
        assert_refused(guesses[0], 404, "session_not_found")
        assert_refused(globex.delete("/v1/sessions/a"), 404, "session_not_found")
        assert ask(globex, "Hi", session_id="a").json()["session"]["version"] == 1
        assert ask(globex, "Hi", session_id="c").status_code == 200
        assert_refused(ask(globex, "Hi", session_id="d"), 507, "store_full")

        assert ask(acme, "on", session_id="a").json()["session"]["version"] == 2
        assert acme.delete("/v1/sessions/b").status_code == 200
        assert ask(acme, "Hi", session_id="c").json()["session"]["version"] == 1
        assert ids(acme) == ["a", "c"]
        assert ids(globex) == ["a", "c"]
        for client in (acme, globex):
            for name in ids(client):
                client.delete(f"/v1/sessions/{name}")


def test_a_tenant_at_its_bytes_is_refused_before_the_answer_and_nothing_is_applied(model: Path, tmp_path: Path) -> None:
    with (
        serving(model, store=f"local://{tmp_path / 'probe'}") as probe,
        httpx.Client(base_url=probe.base_url) as client,
    ):
        ask(client, "Hi", session_id="s")
        num_bytes: int = session_of(client, "s")["bytes"]
    store = f"local://{tmp_path / 'sessions'}"
    with (
        serving(model, store=store, tenant_max_bytes=str(num_bytes * 5 // 2)) as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        for version in (1, 2):
            assert ask(client, "Hi", session_id="s", history="new").json()["session"]["version"] == version
        before = session_of(client, "s")
        refused = ask(client, "Hi", session_id="s", history="new")
        assert_refused(refused, 507, "store_full")
        assert f"the quota is {num_bytes * 5 // 2} bytes" in refused.json()["error"]["message"]
        assert_refused(ask(client, "Hi", session_id="s", history="new", stream=True), 507, "store_full")
        assert session_of(client, "s") == before
        assert len(list((tmp_path / "sessions" / "blobs").iterdir())) == 2


def test_a_deleted_sessions_words_are_nowhere_on_the_disk(model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "sessions"

    def remains() -> list[str]:
        return [path.name for path in directory.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]

    metadata: dict[str, Any] = {"note": MARK}
    with (
        serving(model, store=f"local://{directory}") as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        ask(client, "Hi", session_id="bystander")
        client.post("/v1/sessions", json={"id": MARK, "metadata": metadata})
        for number in range(7):
            ask(client, f"{MARK} {number}", session_id=MARK, history="new", metadata=metadata)
        client.post(f"/v1/sessions/{MARK}/ingest?document_id={MARK}", content=MARK.encode())
        assert "index.sqlite3" in "".join(remains())
        assert client.delete(f"/v1/sessions/{MARK}").status_code == 200
        assert remains() == []
        assert server.runtime.serving().sessions.num_host_copies == 1
        assert session_of(client, "bystander")["version"] == 1
    assert remains() == []
