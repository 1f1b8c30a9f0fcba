"""What is off unless it is asked for: pages of other origins, and proxies that name the client."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from server.config import ConfigError, ServerConfig
from tests.server.harness import ThreadedServer, ask, assert_refused, raw_answer, serving, until

PAGE = {"Origin": "https://page.example"}
PREFLIGHT = {**PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-any"}
FORWARDED = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}


@pytest.fixture(scope="module")
def open_to_a_page(model: Path) -> Iterator[ThreadedServer]:
    with serving(model, api_keys="the-key", cors_origins="https://page.example, http://localhost:3000") as running:
        yield running


@pytest.fixture
def page(open_to_a_page: ThreadedServer) -> Iterator[httpx.Client]:
    headers = {**PAGE, "Authorization": "Bearer the-key"}
    with httpx.Client(base_url=open_to_a_page.base_url, headers=headers, timeout=60) as connected:
        yield connected


def test_a_browsers_question_needs_no_key_and_names_what_a_page_may(open_to_a_page: ThreadedServer) -> None:
    response = httpx.options(f"{open_to_a_page.base_url}/v1/chat/completions", headers=PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://page.example"
    assert response.headers["access-control-allow-headers"] == "authorization,x-any"
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "headers",
    [{**PREFLIGHT, "Origin": "https://other.example"}, {**PREFLIGHT, "Access-Control-Request-Method": "PUT"}],
)
def test_a_question_for_more_is_a_400_of_the_one_shape(open_to_a_page: ThreadedServer, headers: dict[str, str]) -> None:
    response = httpx.options(f"{open_to_a_page.base_url}/v1/chat/completions", headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"
    assert "other.example" not in str(response.headers) + response.text


def test_a_page_reads_answers_and_refusals_of_every_ring(page: httpx.Client) -> None:
    no_key = page.get("/v1/models", headers={"Authorization": "Bearer no"})
    assert_refused(no_key, 401, "invalid_api_key")
    missing = page.get("/nothing")
    assert_refused(missing, 404, "not_found")
    for response in (ask(page, "a", session_id="of-a-page"), no_key, missing):
        assert response.headers["access-control-allow-origin"] == "https://page.example"
        assert "X-Session-Version" in response.headers["access-control-expose-headers"]
        assert "Origin" in response.headers["vary"]


def test_a_page_of_another_origin_is_told_nothing(page: httpx.Client) -> None:
    response = page.get("/v1/models", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in response.headers


def test_without_origins_no_page_is_answered(client: httpx.Client) -> None:
    assert_refused(client.options("/v1/chat/completions", headers=PREFLIGHT), 405, "method_not_allowed")
    for response in (client.get("/v1/models", headers=PAGE), ask(client, "a", PAGE)):
        assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origins", ["page.example", "https://page.example/", "https://page.example/path", "ftp://a"])
def test_what_no_browser_sends_as_an_origin_is_refused_at_the_start(origins: str) -> None:
    with pytest.raises(ConfigError, match="--cors-origins"):
        ServerConfig.build(["--cors-origins", origins], {})


def clients_in_the_log(server: ThreadedServer, caplog: pytest.LogCaptureFixture, headers: dict[str, str]) -> list[str]:
    """Who has asked for the models, as the log says, with and without `headers`."""
    caplog.clear()

    def told() -> list[str]:
        records = [record for record in caplog.records if record.name == "server.requests"]
        return [record.__dict__["fields"]["client"] for record in records]

    def is_told(number: int) -> bool:
        return len(told()) == number

    with caplog.at_level(logging.INFO, "server.requests"):
        for number, sent in enumerate((headers, {}), start=1):
            httpx.get(f"{server.base_url}/v1/models", headers=sent).raise_for_status()
            # A line is written after its answer.
            until(partial(is_told, number))
    return told()


def test_nobody_is_believed_about_who_asks(server: ThreadedServer, caplog: pytest.LogCaptureFixture) -> None:
    assert clients_in_the_log(server, caplog, FORWARDED) == ["127.0.0.1", "127.0.0.1"]


def test_a_proxy_that_is_named_is_believed_and_another_is_not(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(model, forwarded_allow_ips="127.0.0.0/8, 192.0.2.1") as server:
        assert clients_in_the_log(server, caplog, FORWARDED) == ["203.0.113.7", "127.0.0.1"]
        chain = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7, 192.0.2.1"}
        assert clients_in_the_log(server, caplog, chain) == ["203.0.113.7", "127.0.0.1"]
        for nonsense in ('"}\t{', "a" * 5000):
            assert clients_in_the_log(server, caplog, {"X-Forwarded-For": nonsense})[0] is None
        assert b" 200 " in raw_answer(server.port, b"GET /health HTTP/1.0\r\nX-Forwarded-For:\r\n\r\n")
    with serving(model, forwarded_allow_ips="192.0.2.1") as server:
        assert clients_in_the_log(server, caplog, FORWARDED) == ["127.0.0.1", "127.0.0.1"]


@pytest.mark.parametrize("addresses", ["proxy.example", "10.0.0.0/99", "10.0.0.1/8"])
def test_what_is_no_address_of_a_proxy_is_refused_at_the_start(addresses: str) -> None:
    with pytest.raises(ConfigError, match="--forwarded-allow-ips"):
        ServerConfig.build(["--forwarded-allow-ips", addresses], {})
