"""Versions of a session through the clients, against a real server."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import pytest

from clients import ApiError, AsyncClient, Client, ConnectionFailedError, ProtocolError, SessionVersion
from clients.versions import PIECE_NUM_BYTES, Download
from tests.server_process import ServerProcess

HEADERS = {"x-session-version": "3", "content-length": "10", "etag": '"abc"'}


def say(client: Client, session_id: str, *texts: str) -> None:
    for text in texts:
        client.chat(text, session_id=session_id, max_tokens=3, temperature=0.0)


def test_versions_are_listed_named_and_gone_back_to(client: Client) -> None:
    say(client, "back", "one", "two", "three")
    listed = client.list_versions("back")
    assert [(each.version, each.name, each.is_committed) for each in listed] == [
        (3, None, True),
        (2, None, False),
        (1, None, False),
    ]
    info = client.get_session("back")
    assert (listed[0].position, listed[0].num_bytes, listed[0].created) == (
        info.position,
        info.num_bytes,
        info.last_used,
    )
    named = client.name_version("back", "begin", 1)
    assert named[-1].name == "begin"
    with pytest.raises(ApiError, match="version_conflict"):
        client.rewind_session("back", "begin", if_match=2)
    session = client.rewind_session("back", "begin", if_match=3, idempotency_key="once")
    assert (session.version, session.rewound_to, session.committed) == (4, 1, True)
    assert client.rewind_session("back", "begin", if_match=3, idempotency_key="once") == session
    assert client.unname_version("back", "begin")[-1].name is None
    with pytest.raises(ApiError, match="version_not_found") as caught:
        client.rewind_session("back", "begin")
    assert caught.value.status == 404


def test_a_session_is_forked_in_two_ways(client: Client) -> None:
    say(client, "source", "one", "two")
    first = client.fork_session("source", "fork-1", version=1, metadata={"a": "b"}, ttl_seconds=100)
    assert (first.session_id, first.version, first.metadata) == ("fork-1", 0, {"a": "b"})
    second = client.create_session("fork-2", from_session="source", from_version=1, ttl_seconds=100)
    assert second.position == first.position < client.get_session("source").position
    digests = {client.get_session(name).tokens_digest for name in ("fork-1", "fork-2")}
    assert len(digests) == 1
    unnamed = [client.fork_session("source", idempotency_key="the-same").session_id for _ in range(2)]
    assert unnamed[0] == unnamed[1]
    with pytest.raises(ApiError, match="session_exists"):
        client.fork_session("source", "fork-1")
    with pytest.raises(ApiError, match="verison is no field"):
        client.fork_session("source", verison=1)  # type: ignore[call-arg]


def test_an_exported_session_is_imported_as_it_was(client: Client) -> None:
    say(client, "exported", "one", "two")
    file = BytesIO()
    exported = client.export_session("exported", file)
    assert (exported.session_id, exported.version, exported.num_bytes) == ("exported", 2, len(file.getvalue()))
    older = client.export_session("exported", BytesIO(), 1)
    assert older.version == 1
    assert older.digest != exported.digest
    # From where it stands.
    file = BytesIO(b"before" + file.getvalue())
    file.seek(6)
    imported = client.import_session(file, "imported", ttl_seconds=100)
    assert (imported.session_id, imported.version) == ("imported", 0)
    assert client.get_session("imported").tokens_digest == client.get_session("exported").tokens_digest
    with pytest.raises(ApiError, match="invalid_state") as caught:
        client.import_session(BytesIO(b"no session at all"))
    assert caught.value.status == 422
    with pytest.raises(ApiError, match="session_not_found"):
        client.export_session("nobody", BytesIO())


def test_the_asynchronous_client_has_versions_too(server: ServerProcess) -> None:
    async def talk() -> None:
        async with AsyncClient(server.base_url) as client:
            for text in ("one", "two"):
                await client.chat(text, session_id="async-v", max_tokens=3)
            assert [each.version for each in await client.list_versions("async-v")] == [2, 1]
            await client.name_version("async-v", "first", 1)
            assert (await client.fork_session("async-v", "async-fork", version="first")).version == 0
            made = await client.create_session("async-from", from_session="async-v", from_version="first")
            assert made.position == (await client.get_session("async-fork")).position
            assert (await client.rewind_session("async-v", "first")).rewound_to == 1
            assert all(each.name is None for each in await client.unname_version("async-v", "first"))
            file = BytesIO()
            exported = await client.export_session("async-v", file, 2)
            assert exported.num_bytes == file.tell()
            file.seek(0)
            imported = await client.import_session(file, "async-in")
            assert imported.position > made.position

    asyncio.run(talk())


def test_a_snapshot_is_sent_and_written_piece_by_piece(client: Client) -> None:
    class Counted(BytesIO):
        largest = 0

        def write(self, piece: bytes) -> int:  # type: ignore[override]
            self.largest = max(self.largest, len(piece))
            return super().write(piece)

        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            self.largest = max(self.largest, size)
            assert size > 0
            return super().read(size)

    say(client, "piecewise", "one")
    file = Counted()
    client.export_session("piecewise", file)
    file.seek(0)
    client.import_session(file)
    assert 0 < file.largest <= PIECE_NUM_BYTES


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of a server that says this once and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_an_export_that_is_cut_is_a_failed_connection() -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    with (
        answering(f"HTTP/1.1 200 OK\r\n{head}\r\nATLS".encode()) as address,
        Client(address) as client,
        pytest.raises(ConnectionFailedError),
    ):
        client.export_session("s", BytesIO())
    download = Download("s", HEADERS)
    download.add(b"ATLS")
    with pytest.raises(ConnectionFailedError, match="at byte 4 of 10"):
        download.finish()
    download.add(b"123456")
    assert download.finish().version == 3


@pytest.mark.parametrize("name", HEADERS)
def test_an_export_that_does_not_say_what_it_is_is_none(name: str) -> None:
    with pytest.raises(ProtocolError):
        Download("s", {key: value for key, value in HEADERS.items() if key != name})


@pytest.mark.parametrize("name", ["version", "position", "bytes", "committed"])
def test_a_version_without_a_field_is_a_protocol_error_that_names_it(name: str) -> None:
    whole = {"version": 1, "name": None, "position": 2, "bytes": 3, "created": None, "committed": True}
    assert SessionVersion.parse(whole).created is None
    with pytest.raises(ProtocolError, match=name):
        SessionVersion.parse({key: value for key, value in whole.items() if key != name})
