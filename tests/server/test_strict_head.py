"""What stands before a body is read as strictly as the body: nothing twice, only text, and numbers in digits."""

import httpx
import pytest

from server.input.strict_head import MAX_NUM_PARAMETERS, MAX_QUERY_NUM_BYTES, SINGLE_HEADERS
from tests.server.harness import ThreadedServer, ask, assert_refused, raw_answer, session_of

# Of any route, also of those that have no parameters.
PATHS = ["/health", "/v1/models", "/v1/sessions", "/v1/sessions/s/export"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("a=%FF", "invalid_unicode"),
        ("%FF=a", "invalid_unicode"),
        ("a=%ED%A0%80", "invalid_unicode"),
        ("a=%C0%AF", "invalid_unicode"),
        ("a=%00", "invalid_request"),
        ("a=b%0D%0AX-Injected:%201", "invalid_request"),
        ("a=%", "invalid_request"),
        ("a=%zz", "invalid_request"),
        ("a=1&a=1", "invalid_request"),
        ("a=1&%61=2", "invalid_request"),
        ("a=" + "x" * MAX_QUERY_NUM_BYTES, "invalid_request"),
        ("&".join(f"a{number}=" for number in range(MAX_NUM_PARAMETERS + 1)), "invalid_request"),
    ],
)
def test_a_query_that_is_no_text_or_says_a_thing_twice_is_refused(
    server: ThreadedServer, path: str, query: str, code: str
) -> None:
    answer = raw_answer(server.port, f"GET {path}?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert f'"code":"{code}"'.encode() in answer
    assert b"xxxx" not in answer
    assert b"x-injected" not in answer.lower().partition(b"\r\n\r\n")[0]


def test_items_of_a_list_may_be_given_one_after_the_other(client: httpx.Client) -> None:
    assert client.get("/v1/models?include[]=a&include[]=b").status_code == 200


@pytest.mark.parametrize("number", ["1e3", "1.0", "5_0", "+5", " 5", "0x5", "５", "NaN", "true", "9" * 5000, ""])
@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/sessions", "limit"), ("/v1/sessions/s/ingest", "offset"), ("/v1/sessions/import", "ttl_seconds")],
)
def test_a_number_is_its_digits(client: httpx.Client, path: str, name: str, number: str) -> None:
    method = "GET" if name == "limit" else "POST"
    assert_refused(client.request(method, path, params={name: number}), 400, "invalid_request", name)


def test_a_number_at_its_border_is_exact(client: httpx.Client) -> None:
    path = "/v1/sessions/never/ingest"
    just = client.post(path, params={"offset": str(2**63 - 1)}, content=b"a")
    assert_refused(just, 409, "ingest_offset")
    beyond = client.post(path, params={"offset": str(2**63)}, content=b"a")
    assert_refused(beyond, 400, "invalid_request", "offset")


@pytest.mark.parametrize("name", ["ofset", "document", "stream"])
def test_a_parameter_that_a_route_of_ours_does_not_have_is_refused_by_name(
    client: httpx.Client, session_id: str, name: str
) -> None:
    refused = client.post(f"/v1/sessions/{session_id}/ingest", params={name: "7"}, content=b"a")
    assert_refused(refused, 400, "invalid_request", name)
    assert client.get(f"/v1/sessions/{session_id}").status_code == 404
    for path in ("/v1/sessions", "/v1/sessions/s", "/v1/sessions/s/memory", "/v1/sessions/s/versions"):
        assert_refused(client.get(path, params={name: "7"}), 400, "invalid_request", name)


@pytest.mark.parametrize("after", ["a b", "a/b", "a" * 129, "é"])
def test_a_list_goes_on_after_an_id_and_after_nothing_else(client: httpx.Client, after: str) -> None:
    assert_refused(client.get("/v1/sessions", params={"after": after}), 400, "invalid_request", "after")


@pytest.mark.parametrize("name", sorted(name.decode() for name in SINGLE_HEADERS - {b"host"}))
def test_a_header_that_names_one_thing_is_given_once(client: httpx.Client, session_id: str, name: str) -> None:
    ask(client, "a", session_id=session_id).raise_for_status()
    before = session_of(client, session_id)
    headers = [("Content-Type", "application/json")] if name != "content-type" else []
    headers += [(name, value) for value in ("a", "b")]
    body = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "session_id": "' + session_id.encode()
    refused = client.post("/v1/chat/completions", content=body + b'"}', headers=headers)
    assert_refused(refused, 400, "invalid_request", name.title())
    assert session_of(client, session_id) == before
