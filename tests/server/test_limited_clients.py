"""Rate limits as clients meet them: refused before any work, told when to come back, charged what they used."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from server.access.auth import Key, RateLimits, Scope, key_digest
from server.access.keys_file import keys_file_line
from tests.server.harness import (
    ThreadedServer,
    ask,
    assert_refused,
    events_of,
    metric_value,
    open_stream,
    read_until,
    sdk,
    serving,
    session_of,
    until,
    user,
)

KEYS = "acme:acme-key, acme:acme-other, globex:globex-key"
# Tokens a minute.
SCARCE = 120
EVENTS = {"Accept": "text/event-stream"}
OWN_KEY = "own".ljust(40, "-")


def holder(server: ThreadedServer, key: str) -> httpx.Client:
    return httpx.Client(base_url=server.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def limits_of(response: httpx.Response) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {name.removeprefix(prefix): value for name, value in response.headers.items() if name.startswith(prefix)}


def remaining_tokens(client: httpx.Client) -> int:
    return int(limits_of(client.get("/v1/models"))["remaining-tokens"])


def assert_left(num_tokens: int, expected: int, began: float, per_minute: int) -> None:
    """So many are left of a bucket, and what has come since then; what is left is told in whole tokens."""
    come = (time.monotonic() - began) * per_minute / 60
    assert expected - 1 <= num_tokens <= min(per_minute, expected + come + 1)


@pytest.fixture(scope="module")
def scarce(model: Path) -> Iterator[ThreadedServer]:
    with serving(model, api_keys=KEYS, tenant_tokens_per_minute=str(SCARCE)) as running:
        yield running


@contextmanager
def fresh(model: Path, tokens_per_minute: int) -> Iterator[tuple[ThreadedServer, httpx.Client]]:
    """A server of one tenant, whose documents are committed every hundred tokens."""
    settings = {"tenant_tokens_per_minute": str(tokens_per_minute), "ingest_commit_tokens": "100"}
    with (
        serving(model, **settings) as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        yield server, client


def test_a_request_beyond_the_limit_is_a_429_that_says_when_and_other_tenants_are_not_touched(model: Path) -> None:
    with (
        serving(model, api_keys=KEYS, tenant_requests_per_minute="3") as server,
        holder(server, "acme-key") as acme,
        holder(server, "acme-other") as colleague,
        holder(server, "globex-key") as globex,
    ):
        answers = [acme.get("/v1/models"), ask(acme, "a"), colleague.get("/nothing")]
        assert [answer.status_code for answer in answers] == [200, 200, 404]
        assert [limits_of(answer)["remaining-requests"] for answer in answers] == ["2", "1", "0"]
        assert limits_of(answers[0]) == {
            "limit-requests": "3",
            "remaining-requests": "2",
            "reset-requests": limits_of(answers[0])["reset-requests"],
        }
        for client in (acme, colleague):
            refused = ask(client, "b")
            assert_refused(refused, 429, "rate_limited")
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(refused.headers["retry-after"]) <= 20
            assert limits_of(refused)["remaining-requests"] == "0"
        assert ask(globex, "a").status_code == 200
        # Probes and scrapes are nobody's requests.
        for path in ("/health", "/ready", "/metrics"):
            answer = acme.get(path)
            assert answer.status_code == 200
            assert limits_of(answer) == {}
        assert metric_value(acme.get("/metrics").text, 'requests_rejected_total{reason="rate_limited"}') == 2


def test_the_stock_library_waits_as_long_as_it_is_told_and_is_served(model: Path) -> None:
    with serving(model, tenant_requests_per_minute="60") as server:
        client = sdk(server.base_url, max_retries=3)
        with httpx.Client(base_url=server.base_url) as plain:
            while plain.get("/v1/models").status_code == 200:
                pass
        answer = client.chat.completions.create(model="atlas-tiny", messages=[user("a")], max_tokens=1)
        assert answer.usage.completion_tokens == 1


def test_a_turn_is_charged_what_it_read_and_wrote_and_not_what_it_might_have(scarce: ThreadedServer) -> None:
    with holder(scarce, "acme-key") as client:
        assert remaining_tokens(client) == SCARCE
        began = time.monotonic()
        answer = ask(client, "a", max_tokens=60, ignore_eos=True, session_id="s")
        first = answer.json()["usage"]
        assert first["completion_tokens"] == 60
        assert_left(int(limits_of(answer)["remaining-tokens"]), SCARCE - first["total_tokens"], began, SCARCE)
        second = ask(client, "b", session_id="s", max_tokens=40, stop=["a", "e", " ", "\x00"]).json()["usage"]
        num_read = second["prompt_tokens"] - second["prompt_tokens_details"]["cached_tokens"]
        used = first["total_tokens"] + num_read + second["completion_tokens"]
        assert_left(remaining_tokens(client), SCARCE - used, began, SCARCE)


def test_what_may_take_more_than_there_is_is_refused_and_its_session_as_it_was(scarce: ThreadedServer) -> None:
    with holder(scarce, "globex-key") as client:
        ask(client, "a", session_id="s", max_tokens=60, ignore_eos=True).raise_for_status()
        before, left, began = session_of(client, "s"), remaining_tokens(client), time.monotonic()
        for stream in (False, True):
            refused = ask(client, "b", session_id="s", max_tokens=SCARCE - 30, stream=stream)
            assert_refused(refused, 429, "rate_limited")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            never = ask(client, "b", session_id="s", max_tokens=SCARCE + 1, stream=stream)
            assert_refused(never, 429, "rate_limited")
            assert never.headers["x-should-retry"] == "false"
            assert "ask for fewer max_tokens" in never.text
        assert session_of(client, "s") == before
        assert_left(remaining_tokens(client), left, began, SCARCE)


def test_a_client_that_hangs_up_gets_back_what_was_not_written(model: Path) -> None:
    with fresh(model, 10_000) as (server, client):
        began = time.monotonic()
        with open_stream(server.port, "a", {"max_tokens": 9_000, "ignore_eos": True, "stream": True}) as connection:
            read_until(connection, b"data: ")
            assert_left(remaining_tokens(client), 1_000 - len("a") - 4, began, 10_000)
        until(lambda: remaining_tokens(client) > 5_000)
        exposition = client.get("/metrics").text
        num_used = sum(metric_value(exposition, f"{kind}_tokens_total") for kind in ("prompt", "generation"))
        # The engine may have written one more, which nobody was told.
        assert_left(remaining_tokens(client), round(10_000 - num_used), began, 10_000)


def test_a_document_longer_than_a_minutes_worth_waits_and_is_read_to_its_end(model: Path) -> None:
    text = "Mary went to the garden.\n" * 450
    with fresh(model, 6_000) as (_, client):
        began = time.monotonic()
        num_read = client.post("/v1/sessions/s/ingest", content=text.encode()).json()["tokens"]
        seconds = time.monotonic() - began
        assert num_read > 6_000
        # A minute's worth, what came meanwhile, and the last two commits, of which one is paid afterwards.
        assert num_read <= 6_000 + seconds * 100 + 300
        assert session_of(client, "s")["open_ingest"] is None


def test_a_document_is_not_begun_without_tokens_and_one_that_was_read_costs_nothing(model: Path) -> None:
    with fresh(model, 200) as (_, client):
        path = "/v1/sessions/s/ingest?document_id=d"
        began = time.monotonic()
        num_read = client.post(path, content=b"Mary went to the garden.\n").json()["tokens"]
        client.post(path, content=b"Mary went to the garden.\n").raise_for_status()
        assert_left(remaining_tokens(client), 200 - num_read, began, 200)
        document = b"The key is in the garden.\n" * 40
        with client.stream("POST", "/v1/sessions/long/ingest", content=document, headers=EVENTS) as upload:
            assert "session.ingest.progress" in next(upload.iter_lines())
            until(lambda: remaining_tokens(client) == 0)
            before = session_of(client, "s")
            for headers in ({}, EVENTS):
                assert_refused(client.post(path, content=b"a", headers=headers), 429, "rate_limited")
            refused = ask(client, "a", session_id="s")
            assert_refused(refused, 429, "rate_limited")
            assert "200 tokens a minute" in refused.text
            assert session_of(client, "s") == before


def test_items_of_a_conversation_are_charged_and_not_begun_without_tokens(model: Path) -> None:
    with fresh(model, 200) as (_, client):
        items = {"items": [{"type": "message", "role": "user", "content": "Mary went to the garden. " * 6}]}
        began = time.monotonic()
        answer = client.post("/v1/conversations", json=items)
        answer.raise_for_status()
        num_read = session_of(client, answer.json()["id"])["position"]
        assert_left(remaining_tokens(client), max(0, 200 - num_read), began, 200)
        while client.post("/v1/conversations", json=items).status_code == 200:
            pass
        refused = client.post(f"/v1/conversations/{answer.json()['id']}/items", json=items)
        assert_refused(refused, 429, "rate_limited")


def test_an_upload_that_waits_for_tokens_tells_its_progress_and_ends_with_the_server(model: Path) -> None:
    with fresh(model, 60) as (server, client):
        text = "Mary went to the garden.\n" * 40
        with client.stream("POST", "/v1/sessions/s/ingest", content=text.encode(), headers=EVENTS) as upload:
            lines = upload.iter_lines()
            assert "session.ingest.progress" in next(lines)
            server.terminate()
            rest = "".join(lines)
        assert '"code":"draining"' in rest
        assert server.join() == 0


def test_a_key_with_limits_of_its_own_spends_nothing_of_its_tenants(model: Path, tmp_path: Path) -> None:
    own = Key(key_digest(OWN_KEY.encode()), "acme", frozenset({Scope.USER}), limits=RateLimits(requests_per_minute=2))
    path = tmp_path / "keys.txt"
    path.write_text(keys_file_line(own))
    path.chmod(0o600)
    settings = {"api_keys": KEYS, "api_keys_file": str(path), "tenant_requests_per_minute": "1"}
    with serving(model, **settings) as server, holder(server, OWN_KEY) as mine, holder(server, "acme-key") as acme:
        assert [mine.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
        assert [acme.get("/v1/models").status_code for _ in range(2)] == [200, 429]


def test_without_limits_no_answer_speaks_of_any(client: httpx.Client) -> None:
    assert limits_of(client.get("/v1/models")) == {}


def test_a_stream_says_what_is_left_when_it_begins(scarce: ThreadedServer) -> None:
    with holder(scarce, "acme-other") as client:
        until(lambda: remaining_tokens(client) > 20, seconds=30)
        answer = ask(client, "a", max_tokens=1, stream=True)
        assert events_of(answer)[-1] == "[DONE]"
        assert limits_of(answer)["limit-tokens"] == str(SCARCE)
