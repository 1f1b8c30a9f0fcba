"""A session's versions over HTTP: kept, named, gone back to, begun from; and regenerating an answer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.harness import (
    ThreadedServer,
    ask,
    assert_refused,
    events_of,
    new_name,
    sdk,
    serving,
    session_of,
    user,
)
from tests.server.test_auth import as_holder_of


@pytest.fixture
def told(client: httpx.Client, session_id: str) -> list[str]:
    """The answers of three turns: "one", "two", "three"."""
    answers = (ask(client, text, session_id=session_id, history="new") for text in ("one", "two", "three"))
    return [answer.json()["choices"][0]["message"]["content"] for answer in answers]


def versions_of(client: httpx.Client, session_id: str) -> list[dict[str, Any]]:
    response = client.get(f"/v1/sessions/{session_id}/versions")
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["object"] == "list"
    data: list[dict[str, Any]] = body["data"]
    return data


def digest_of(client: httpx.Client, session_id: str) -> str:
    digest: str = session_of(client, session_id)["tokens_digest"]
    return digest


def rewind(
    client: httpx.Client, session_id: str, version: int | str, headers: dict[str, str] | None = None
) -> httpx.Response:
    return client.post(f"/v1/sessions/{session_id}/rewind", json={"version": version}, headers=headers)


def fork(client: httpx.Client, session_id: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return client.post(f"/v1/sessions/{session_id}/fork", json=fields, headers=headers)


def test_the_versions_that_are_kept_are_listed_newest_first(
    client: httpx.Client, session_id: str, told: list[str]
) -> None:
    session = session_of(client, session_id)
    listed = versions_of(client, session_id)
    assert [each["version"] for each in listed] == [3, 2, 1]
    assert [each["committed"] for each in listed] == [True, False, False]
    assert [each["name"] for each in listed] == [None, None, None]
    newest = listed[0]
    assert (newest["position"], newest["bytes"]) == (session["position"], session["bytes"])
    assert newest["created"] == session["last_used"]
    assert sorted(each["position"] for each in listed) == [each["position"] for each in reversed(listed)]


def test_a_version_keeps_its_place_for_as_long_as_it_has_a_name(
    client: httpx.Client, session_id: str, told: list[str]
) -> None:
    path = f"/v1/sessions/{session_id}/versions"
    named = client.post(path, json={"name": "begin", "version": 1})
    assert named.status_code == 200, named.text
    assert named.headers["x-session-version"] == "3"
    assert [(each["version"], each["name"]) for each in named.json()["data"]] == [(3, None), (2, None), (1, "begin")]
    # Giving it again is not another name.
    assert client.post(path, json={"name": "begin", "version": "begin"}).json() == named.json()
    client.post(path, json={"name": "now"})
    for number in range(6):
        ask(client, f"more {number}", session_id=session_id)
    assert [each["version"] for each in versions_of(client, session_id)] == [9, 8, 7, 6, 5, 3, 1]
    taken = client.delete(f"{path}/begin")
    assert [each["version"] for each in taken.json()["data"]] == [9, 8, 7, 6, 5, 3]
    assert_refused(client.delete(f"{path}/begin"), 404, "version_not_found")
    # What has no name cannot lose it by its number.
    assert_refused(client.delete(f"{path}/8"), 404, "version_not_found")
    assert rewind(client, session_id, "now").json()["rewound_to"] == 3


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"name": "12"}, 400, "invalid_request", "name"),
        ({"name": ""}, 400, "invalid_request", "name"),
        ({"name": "x" * 65}, 400, "invalid_request", "name"),
        ({"name": "a b"}, 400, "invalid_request", "name"),
        ({"name": ".."}, 400, "invalid_request", "name"),
        ({"name": "a\n"}, 400, "invalid_request", "name"),
        ({"name": 7}, 400, "invalid_request", "name"),
        ({"name": "taken"}, 400, "invalid_request", "name"),
        ({}, 400, "invalid_request", "name"),
        ({"name": "a", "version": 99}, 404, "version_not_found", None),
        ({"name": "a", "version": 10**4000}, 404, "version_not_found", None),
        ({"name": "a", "version": "absent"}, 404, "version_not_found", None),
        ({"name": "a", "other": 1}, 400, "invalid_request", "other"),
    ],
)
def test_a_name_that_cannot_be_given_is_refused(
    client: httpx.Client, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    session_id = new_name()
    for text in ("one", "two"):
        ask(client, text, session_id=session_id)
    path = f"/v1/sessions/{session_id}/versions"
    client.post(path, json={"name": "taken", "version": 1})
    before = versions_of(client, session_id)
    assert_refused(client.post(path, json=fields), status, code, param)
    assert versions_of(client, session_id) == before


def test_a_rewind_brings_an_older_version_back_as_a_new_one(
    client: httpx.Client, session_id: str, told: list[str]
) -> None:
    fork(client, session_id, new_id=f"{session_id}-1", version=1)
    back = rewind(client, session_id, 1)
    assert back.status_code == 200, back.text
    position = session_of(client, session_id)["position"]
    assert back.json() == {
        "object": "session.rewound",
        "id": session_id,
        "version": 4,
        "committed": True,
        "durability": "disk",
        "position": position,
        "rewound_to": 1,
    }
    assert back.headers["x-session-version"] == "4"
    assert position == versions_of(client, session_id)[-1]["position"]
    assert digest_of(client, session_id) == digest_of(client, f"{session_id}-1")
    again = ask(client, "two", session_id=session_id, history="new").json()
    assert again["choices"][0]["message"]["content"] == told[1]
    assert "rewound_to" not in again["session"]
    # The undone can be undone.
    assert rewind(client, session_id, 3).json()["rewound_to"] == 3


def test_a_rewind_is_made_once_and_only_from_the_version_that_was_meant(
    client: httpx.Client, session_id: str, told: list[str]
) -> None:
    assert_refused(rewind(client, session_id, 1, {"If-Match": '"2"'}), 412, "version_conflict")
    keyed = {"If-Match": '"3"', "Idempotency-Key": f"back-{session_id}"}
    first, repeated = (rewind(client, session_id, 1, keyed) for _ in range(2))
    assert first.status_code == 200, first.text
    assert repeated.json() == first.json()
    assert_refused(rewind(client, session_id, 2, keyed), 409, "idempotency_mismatch")
    assert rewind(client, session_id, 2).json()["version"] == 5
    retried = rewind(client, session_id, 2, {"x-stainless-retry-count": "1"})
    assert retried.json()["version"] == 5
    assert rewind(client, session_id, 2).json()["version"] == 6


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"version": 0}, 404, "version_not_found", None),
        ({"version": 9}, 404, "version_not_found", None),
        ({"version": "absent"}, 404, "version_not_found", None),
        ({"version": None}, 400, "invalid_request", "version"),
        ({"version": -1}, 400, "invalid_request", "version"),
        ({"version": 1.5}, 400, "invalid_request", "version"),
        ({"version": [1]}, 400, "invalid_request", "version"),
        ({}, 400, "invalid_request", "version"),
    ],
)
def test_a_session_is_not_rewound_to_nowhere(
    client: httpx.Client, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    session_id = new_name()
    ask(client, "one", session_id=session_id)
    assert_refused(client.post(f"/v1/sessions/{session_id}/rewind", json=body), status, code, param)
    assert session_of(client, session_id)["version"] == 1


def test_both_ways_to_fork_give_the_same_session(client: httpx.Client, session_id: str, told: list[str]) -> None:
    client.post(f"/v1/sessions/{session_id}/versions", json={"name": "second", "version": 2})
    by_path = fork(client, session_id, new_id=f"{session_id}-a", version="second")
    by_body = client.post(
        "/v1/sessions", json={"id": f"{session_id}-b", "from": {"session_id": session_id, "version": 2}}
    )
    for made in (by_path, by_body):
        assert made.status_code == 200, made.text
        body = made.json()
        assert (body["object"], body["version"]) == ("session", 0)
        assert body["position"] == versions_of(client, session_id)[1]["position"]
        assert made.headers["x-session-id"] == body["id"]
        assert made.headers["x-session-version"] == "0"
        answer = ask(client, "three", session_id=body["id"], history="new").json()
        assert answer["choices"][0]["message"]["content"] == told[2]
    assert digest_of(client, f"{session_id}-a") == digest_of(client, f"{session_id}-b")
    assert session_of(client, session_id)["version"] == 3


def test_a_fork_takes_metadata_and_time_to_live_along_unless_told_otherwise(
    client: httpx.Client, session_id: str
) -> None:
    client.post("/v1/sessions", json={"id": session_id, "metadata": {"book": "Emma"}, "ttl_seconds": 3600})
    same = fork(client, session_id).json()
    assert (same["metadata"], same["ttl_seconds"]) == ({"book": "Emma"}, 3600)
    other = fork(client, session_id, metadata={}, ttl_seconds=60).json()
    assert (other["metadata"], other["ttl_seconds"]) == ({}, 60)
    assert same["id"] != other["id"]


def test_a_fork_goes_on_by_itself_after_the_other_is_gone(
    client: httpx.Client, session_id: str, told: list[str]
) -> None:
    other = f"{session_id}-other"
    fork(client, session_id, new_id=other)
    before = digest_of(client, other)
    ask(client, "four", session_id=session_id)
    assert digest_of(client, other) == before
    client.delete(f"/v1/sessions/{session_id}")
    assert ask(client, "four", session_id=other).json()["session"]["version"] == 1


def test_a_fork_is_refused_where_there_is_a_session_or_nothing_to_fork(
    client: httpx.Client, session_id: str, told: list[str]
) -> None:
    taken = fork(client, session_id, new_id=session_id)
    assert_refused(taken, 409, "session_exists")
    assert taken.headers["x-should-retry"] == "false"
    assert_refused(fork(client, session_id, version=0), 404, "version_not_found")
    assert_refused(fork(client, new_name("absent")), 404, "session_not_found")
    assert_refused(fork(client, session_id, new_id="a/b"), 400, "invalid_request", "session_id")
    assert_refused(fork(client, session_id, ttl_seconds=0), 400, "invalid_request", "ttl_seconds")
    assert_refused(fork(client, session_id, id="x"), 400, "invalid_request", "id")


@pytest.mark.parametrize("headers", [{"Idempotency-Key": "{}"}, {"x-stainless-retry-count": "1"}])
def test_a_session_is_begun_once_however_often_that_is_asked(
    client: httpx.Client, session_id: str, told: list[str], headers: dict[str, str]
) -> None:
    def begin_twice(make: Callable[[dict[str, str]], httpx.Response]) -> dict[str, Any]:
        mine = {name: value.format(new_name("key")) for name, value in headers.items()}
        first, again = make(mine), make(mine)
        assert first.status_code == 200, first.text
        assert again.json() == first.json()
        body: dict[str, Any] = first.json()
        return body

    made = begin_twice(lambda mine: client.post("/v1/sessions", json={"id": f"{session_id}-new"}, headers=mine))
    assert made["position"] == 0
    forked = begin_twice(lambda mine: fork(client, session_id, mine, new_id=f"{session_id}-fork", version=2))
    assert forked["position"] > 0
    assert_refused(fork(client, session_id, new_id=f"{session_id}-fork", version=2), 409, "session_exists")


def test_a_key_finds_the_session_that_it_made_without_an_id(client: httpx.Client, session_id: str) -> None:
    key = {"Idempotency-Key": f"make-{session_id}"}
    first, again = (client.post("/v1/sessions", json={"metadata": {"a": "b"}}, headers=key) for _ in range(2))
    assert first.json() == again.json()
    assert_refused(client.post("/v1/sessions", json={}, headers=key), 409, "idempotency_mismatch")
    assert_refused(
        client.post("/v1/sessions", headers={"Idempotency-Key": "a b"}), 400, "invalid_request", "Idempotency-Key"
    )


def test_another_tenants_session_can_neither_be_seen_nor_taken_nor_turned_back(model: Path) -> None:
    with (
        serving(model, api_keys="acme:acme-key,globex:globex-key") as server,
        as_holder_of(server, "acme-key") as acme,
        as_holder_of(server, "globex-key") as globex,
    ):
        for text in ("our secret", "our other secret"):
            ask(acme, text, session_id="vault")
        before = acme.get("/v1/sessions/vault/versions").json()
        attempts: list[Callable[[str], httpx.Response]] = [
            lambda name: globex.get(f"/v1/sessions/{name}/versions"),
            lambda name: globex.post(f"/v1/sessions/{name}/versions", json={"name": "mine"}),
            lambda name: globex.delete(f"/v1/sessions/{name}/versions/mine"),
            lambda name: globex.get(f"/v1/sessions/{name}/export"),
            lambda name: rewind(globex, name, 1),
            lambda name: fork(globex, name, new_id="loot"),
            lambda name: globex.post("/v1/sessions", json={"id": "loot", "from": {"session_id": name}}),
        ]
        for attempt in attempts:
            refused = attempt("vault")
            assert_refused(refused, 404, "session_not_found")
            assert refused.json() == attempt("absent").json()
        assert globex.get("/v1/sessions").json()["data"] == []
        assert acme.get("/v1/sessions/vault/versions").json() == before


def test_a_regenerated_answer_takes_the_place_of_the_last_one(
    server: ThreadedServer, client: httpx.Client, session_id: str
) -> None:
    with sdk(server.base_url, default_headers={"X-Session-Id": session_id}) as library:

        def say(messages: list[dict[str, Any]], **extra: Any) -> tuple[str, dict[str, Any]]:
            answer = library.chat.completions.create(
                model="atlas-tiny", messages=messages, max_tokens=4, temperature=0, extra_body=extra
            )
            session: dict[str, Any] = (answer.model_extra or {})["session"]
            return answer.choices[0].message.content, session

        first, _ = say([user("one")])
        fork(client, session_id, new_id=f"{session_id}-as-it-was")
        history = [user("one"), {"role": "assistant", "content": first}]
        _, session = say([*history, user("two")])
        assert "rewound_to" not in session
        again, session = say([*history, user("two, please")], on_divergence="rewind")
        assert (session["version"], session["rewound_to"]) == (3, 1)
    there = ask(client, "two, please", session_id=f"{session_id}-as-it-was").json()
    assert again == there["choices"][0]["message"]["content"]
    assert digest_of(client, session_id) == digest_of(client, f"{session_id}-as-it-was")


def test_a_stream_that_went_back_says_so_when_it_ends(client: httpx.Client, session_id: str, told: list[str]) -> None:
    messages = [user("one"), {"role": "assistant", "content": told[0]}, user("other")]
    fields: dict[str, Any] = {"session_id": session_id, "messages": messages, "stream": True}
    assert_refused(ask(client, "", **fields), 409, "session_diverged")
    response = ask(client, "", **fields, on_divergence="rewind")
    assert response.headers["x-session-version"] == "3"
    ending = [event for event in events_of(response) if event != "[DONE]" and "session" in event]
    assert [(end["session"]["version"], end["session"]["rewound_to"]) for end in ending] == [(4, 1)]


def test_nothing_of_what_was_said_is_nothing_to_go_back_to(
    client: httpx.Client, session_id: str, told: list[str]
) -> None:
    messages = [user("never said"), {"role": "assistant", "content": "nor answered"}, user("other")]
    refused = ask(client, "", session_id=session_id, messages=messages, on_divergence="rewind")
    assert_refused(refused, 409, "session_diverged")


@pytest.fixture(scope="module")
def forgetful(model: Path) -> Iterator[httpx.Client]:
    """A server that keeps nothing but what is committed, and what has a name."""
    with serving(model, kept_versions="0") as running, httpx.Client(base_url=running.base_url, timeout=60) as client:
        yield client


def test_as_many_versions_are_kept_as_the_setting_says(forgetful: httpx.Client) -> None:
    for text in ("one", "two"):
        ask(forgetful, text, session_id="s")
    forgetful.post("/v1/sessions/s/versions", json={"name": "kept"})
    ask(forgetful, "three", session_id="s")
    ask(forgetful, "four", session_id="s")
    assert [each["version"] for each in versions_of(forgetful, "s")] == [4, 2]
    assert_refused(rewind(forgetful, "s", 3), 404, "version_not_found")
    assert rewind(forgetful, "s", "kept").json()["version"] == 5


def test_the_stock_librarys_own_calls_reach_the_versions(
    server: ThreadedServer, client: httpx.Client, session_id: str, told: list[str]
) -> None:
    with sdk(server.base_url, max_retries=2) as library:
        made: Any = library.post(f"/sessions/{session_id}/fork", cast_to=object, body={"version": 1})
        back: Any = library.post(f"/sessions/{made['id']}/rewind", cast_to=object, body={"version": 0})
        listed: Any = library.get(f"/sessions/{made['id']}/versions", cast_to=object)
    assert (back["version"], back["rewound_to"]) == (1, 0)
    assert [each["version"] for each in listed["data"]] == [1, 0]


def test_the_documentation_has_every_route_of_versions_with_its_body(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    bodies = {
        "/v1/sessions": "CreateSessionRequest",
        "/v1/sessions/{session_id}/fork": "ForkRequest",
        "/v1/sessions/{session_id}/rewind": "RewindRequest",
        "/v1/sessions/{session_id}/versions": "NameVersionRequest",
    }
    for path, name in bodies.items():
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"]["$ref"] == f"#/components/schemas/{name}"
    assert "from" in document["components"]["schemas"]["CreateSessionRequest"]["properties"]
    imported = document["paths"]["/v1/sessions/import"]["post"]["requestBody"]["content"]
    assert imported == {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    assert {"get", "post"} <= set(document["paths"]["/v1/sessions/{session_id}/versions"])
    assert "delete" in document["paths"]["/v1/sessions/{session_id}/versions/{name}"]
    assert "get" in document["paths"]["/v1/sessions/{session_id}/export"]
