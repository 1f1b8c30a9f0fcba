"""Keys, and the tenants that come from them and from nothing else."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.access.auth import ApiKeys
from tests.server.harness import ThreadedServer, ask, assert_refused, serving

KEYS = "open-sesame, acme:acme-key, acme:acme-other, globex:globex-key"


@pytest.fixture(scope="module")
def guarded(model: Path) -> Iterator[ThreadedServer]:
    with serving(model, api_keys=KEYS) as running:
        yield running


def as_holder_of(server: ThreadedServer, key: str | bytes | None) -> httpx.Client:
    raw = key.encode() if isinstance(key, str) else key
    headers = {} if raw is None else {b"Authorization": b"Bearer " + raw}
    return httpx.Client(base_url=server.base_url, headers=headers, timeout=60)


@pytest.mark.parametrize(
    "key", [None, "wrong", "open-sesame-and-more", "acme:acme-key", "Bearer", b"caf\xc3\xa9", b"\xff"]
)
def test_without_a_known_key_everything_but_health_and_ready_is_a_401(
    guarded: ThreadedServer, key: str | bytes | None
) -> None:
    with as_holder_of(guarded, key) as client:
        for path in ("/v1/models", "/v1/sessions", "/metrics", "/version", "/docs", "/openapi.json", "/nothing"):
            response = client.get(path)
            assert_refused(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        assert_refused(client.post("/v1/chat/completions", content=b"not even JSON"), 401, "invalid_api_key")
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 200


def test_other_schemes_are_no_keys(guarded: ThreadedServer) -> None:
    for header in ("open-sesame", "Basic open-sesame", "bearer: open-sesame"):
        response = httpx.get(f"{guarded.base_url}/v1/models", headers={"Authorization": header})
        assert response.status_code == 401, header
    assert (
        httpx.get(f"{guarded.base_url}/v1/models", headers={"Authorization": "bearer open-sesame"}).status_code == 200
    )


def test_a_tenants_requests_leave_places_for_another_tenants(model: Path) -> None:
    endless = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 30_000, "ignore_eos": True, "stream": True}
    with (
        serving(model, api_keys=KEYS, max_num_sequences="3", max_num_waiting="1") as server,
        as_holder_of(server, "acme-key") as acme,
        as_holder_of(server, "acme-other") as other_key,
        as_holder_of(server, "globex-key") as globex,
        acme.stream("POST", "/v1/chat/completions", json=endless) as first,
        other_key.stream("POST", "/v1/chat/completions", json=endless) as second,
    ):
        streams = [each.iter_lines() for each in (first, second)]
        assert all(next(lines).startswith("data: ") for lines in streams)
        assert_refused(ask(acme, "b"), 429, "queue_full")
        assert_refused(ask(other_key, "b", session_id="s"), 429, "queue_full")
        assert ask(globex, "b").status_code == 200


def test_another_tenants_session_is_like_an_absent_one(guarded: ThreadedServer) -> None:
    with as_holder_of(guarded, "acme-key") as acme, as_holder_of(guarded, "globex-key") as globex:
        ask(acme, "our secret", session_id="shared-name")
        mine, absent = globex.get("/v1/sessions/shared-name"), globex.get("/v1/sessions/absent")
        assert_refused(mine, 404, "session_not_found")
        assert mine.json() == absent.json()
        assert_refused(globex.delete("/v1/sessions/shared-name"), 404, "session_not_found")
        assert_refused(ask(globex, "?", session_id="shared-name", read_only=True), 404, "session_not_found")
        assert globex.get("/v1/sessions").json()["data"] == []
        begun = ask(globex, "ours", session_id="shared-name").json()
        assert begun["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        with as_holder_of(guarded, "acme-other") as colleague:
            continued = ask(colleague, "?", session_id="shared-name").json()
        assert continued["session"]["version"] == 2


def test_without_keys_any_authorization_is_accepted(server: ThreadedServer) -> None:
    for key in (None, "whatever", b"\xff"):
        with as_holder_of(server, key) as client:
            assert client.get("/v1/models").status_code == 200


def test_keys_are_read_with_their_tenants() -> None:
    keys = ApiKeys.parse(" a , t:b,t:c:d, ")
    found = [keys.find(b"Bearer " + key) for key in (b"a", b"b", b"c:d")]
    assert [key and key.tenant for key in found] == ["default", "t", "t"]
    assert keys.find(b"Bearer t:b") is None
    assert not ApiKeys.parse("")


@pytest.mark.parametrize("text", ["t:", "bad tenant:key", ":key", "k ey", "clé", "a,t/x:key"])
def test_keys_that_cannot_be_sent_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="entry") as refused:
        ApiKeys.parse(text)
    assert "key" not in str(refused.value).replace("the key of", "")
