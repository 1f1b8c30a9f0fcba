"""A document as the file of a form, as curl -F and browsers send it: read as it arrives, and as strictly as others."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.figures import tell
from tests.faults.footprint import Footprint, peak_num_bytes
from tests.server.forked import ForkedServer, Forker
from tests.server.harness import assert_refused, session_of, until

TEXT = "Mary went to the garden.\r\n--not a boundary\n--\r\n-\r" * 20
FILE = {"file": ("book.txt", TEXT.encode(), "text/plain")}
BOUNDARY = "0123456789"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
MEBI = 2**20


def part(content: bytes, *headers: str, name: str = "file") -> bytes:
    head = "\r\n".join([f'Content-Disposition: form-data; name="{name}"; filename="a.txt"', *headers])
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def test_a_file_of_a_form_is_learned_as_the_same_text_is(client: httpx.Client, session_id: str) -> None:
    plain = client.post(f"/v1/sessions/{session_id}-plain/ingest", content=TEXT.encode())
    form = client.post(f"/v1/sessions/{session_id}/ingest", files=FILE)
    assert form.status_code == 200, form.text
    assert (form.json()["bytes"], form.json()["tokens"]) == (plain.json()["bytes"], plain.json()["tokens"])
    digests = [session_of(client, name)["tokens_digest"] for name in (session_id, f"{session_id}-plain")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("num_bytes", [1, 7, 13])
def test_where_a_form_is_cut_into_pieces_changes_nothing(client: httpx.Client, session_id: str, num_bytes: int) -> None:
    body = part(TEXT.encode(), "Content-Type: text/plain; charset=utf-8") + END + b"epilogue"
    pieces = (body[at : at + num_bytes] for at in range(0, len(body), num_bytes))
    answer = client.post(f"/v1/sessions/{session_id}/ingest", content=pieces, headers=FORM)
    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == len(TEXT.encode())


def test_a_form_that_breaks_off_goes_on_at_its_last_commit(client: httpx.Client, session_id: str) -> None:
    document = b"Mary went to the garden.\n" * 60
    path = f"/v1/sessions/{session_id}/ingest"
    broken = client.post(path, content=part(document)[: -len("garden.\n\r\n")], headers=FORM)
    assert_refused(broken, 400, "invalid_request")
    offset = session_of(client, session_id)["open_ingest"]["offset"]
    assert 0 < offset < len(document)
    rest = client.post(path, params={"offset": offset}, content=part(document[offset:]) + END, headers=FORM)
    assert rest.json()["bytes"] == len(document)
    client.post(f"{path}".replace(session_id, f"{session_id}-whole"), content=document).raise_for_status()
    assert session_of(client, session_id)["tokens_digest"] == session_of(client, f"{session_id}-whole")["tokens_digest"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", FORM, 400),
        (END, FORM, 400),
        (b"no form at all", FORM, 400),
        (part(b"a"), FORM, 400),
        (part(b"a", name="text") + END, FORM, 400),
        (part(b"a") + part(b"b") + END, FORM, 400),
        (part(b"a") + part(b"b", name="document_id") + END, FORM, 400),
        (part(b"a", *[f"X-{number}: a" for number in range(20)]) + END, FORM, 400),
        (part(b"a", "X-Long: " + "a" * 100_000) + END, FORM, 400),
        (part(b"a", "Bad Name: a") + END, FORM, 400),
        (part(b"\xff") + END, FORM, 400),
        (part(b"") + END, FORM, 400),
        (part(b"a") + END, {"Content-Type": "multipart/form-data"}, 400),
        (part(b"a") + END, {"Content-Type": f"multipart/form-data; boundary={'b' * 71}"}, 400),
        (part(b"a", "Content-Type: text/plain; charset=utf-16") + END, FORM, 415),
        (part(b"a", "Content-Transfer-Encoding: base64") + END, FORM, 415),
        (part(b"a") + END, {"Content-Type": f"multipart/mixed; boundary={BOUNDARY}"}, 415),
    ],
)
def test_a_form_that_is_not_one_whole_file_is_refused_and_nothing_learned(
    client: httpx.Client, session_id: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    refused = client.post(f"/v1/sessions/{session_id}/ingest", content=body, headers=headers)
    assert refused.status_code == status, refused.text
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    assert client.get(f"/v1/sessions/{session_id}").status_code == 404


@pytest.fixture
def own(forker: Forker, model: Path, tmp_path: Path) -> Iterator[ForkedServer]:
    with ForkedServer(forker, tmp_path, model=str(model), store="memory://") as running:
        yield running


def test_a_file_is_not_kept_while_it_waits_to_be_read(own: ForkedServer) -> None:
    before = Footprint.of(own.pid)
    head = "POST /v1/sessions/s/ingest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    line = b"Mary went to the garden.\n" * 2600
    with socket.create_connection(("127.0.0.1", own.port), timeout=60) as connection:
        connection.sendall(f"{head}Content-Type: {FORM['Content-Type']}\r\n\r\n".encode())
        connection.settimeout(0.2)
        num_sent_bytes = 0
        try:
            for content in (part(line)[:-2], *[line] * 10_000):
                connection.sendall(b"%x\r\n%b\r\n" % (len(content), content))
                num_sent_bytes += len(content)
        except TimeoutError:
            # The server has taken what it will for now.
            pass
        growth = peak_num_bytes(own.pid) - before.num_bytes
    tell(f"a file that is read more slowly than it comes: memory grew {growth / MEBI:.0f} MiB, no file was made")
    assert num_sent_bytes < 64 * MEBI
    assert growth < 40 * MEBI
    assert Footprint.of(own.pid).num_open <= before.num_open + 3
    until(lambda: own.client.get("/health").status_code == 200)
