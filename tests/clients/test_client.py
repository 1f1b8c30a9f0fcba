"""The clients against a real server."""

import asyncio
import inspect
import socket
import threading
from contextlib import aclosing, closing
from io import BytesIO

import pytest

from clients import ApiError, AsyncClient, Client, ConnectionFailedError, IngestProgress, ProtocolError
from tests.server_process import ServerProcess, find_free_port

DOCUMENT = b"The patient merchant sighed, and nobody remembered the rumour.\n" * 30


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        members = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in members if name[0] != "_"}

    assert methods(Client) == methods(AsyncClient)


def test_a_turn_is_answered_and_committed(client: Client) -> None:
    answer = client.chat("Who sighed?", session_id="turn", max_tokens=5, ignore_eos=True, temperature=0.0)
    assert answer.finish_reason == "length"
    assert answer.session is not None
    assert (answer.session.session_id, answer.session.version, answer.session.committed) == ("turn", 1, True)
    assert answer.session.durability == "disk"
    assert answer.usage is not None
    assert answer.usage.num_completion_tokens == 5
    assert client.get_session("turn").position == answer.session.position


def test_a_streamed_answer_is_the_whole_one_in_pieces(client: Client) -> None:
    client.ingest("pieces", BytesIO(DOCUMENT))
    whole = client.chat("Who?", session_id="pieces", read_only=True, max_tokens=9, temperature=0.0, ignore_eos=True)
    deltas = list(
        client.stream_chat("Who?", session_id="pieces", read_only=True, max_tokens=9, temperature=0.0, ignore_eos=True)
    )
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [whole.finish_reason]
    assert [delta.usage for delta in deltas if delta.usage] == [whole.usage]
    assert [delta.session for delta in deltas if delta.session] == [whole.session]


def test_a_stream_that_is_closed_undoes_its_turn(client: Client) -> None:
    before = client.chat("Hello.", session_id="closed", max_tokens=3).session
    assert before is not None
    with closing(client.stream_chat("And then?", session_id="closed", max_tokens=20000, ignore_eos=True)) as deltas:
        next(deltas)
    after = client.chat("Still there?", session_id="closed", max_tokens=3, if_match=before.version).session
    assert after is not None
    assert after.version == before.version + 1


def test_a_document_is_read_in_commits_and_never_twice(client: Client) -> None:
    seen: list[IngestProgress] = []
    result = client.ingest("book", BytesIO(DOCUMENT), on_progress=seen.append)
    assert result.num_bytes == len(DOCUMENT)
    assert result.session.version > 3
    committed = [progress.num_committed_bytes for progress in seen]
    assert committed == sorted(committed)
    assert all(0 < num_bytes <= len(DOCUMENT) for num_bytes in committed)
    assert {progress.num_total_bytes for progress in seen} == {len(DOCUMENT)}
    info = client.get_session("book")
    assert (info.position, info.open_ingest) == (result.session.position, None)
    client.ingest("book", BytesIO(DOCUMENT))
    assert client.get_session("book") == info
    again = client.ingest("book", BytesIO(DOCUMENT), document_id="the-same-text-once-more")
    assert again.session.position > info.position


def test_sessions_are_made_listed_and_forgotten(client: Client) -> None:
    made = client.create_session("made", metadata={"topic": "tea"})
    assert (made.version, made.position, made.metadata) == (0, 0, {"topic": "tea"})
    page = client.list_sessions(limit=1, after="mad")
    assert [info.session_id for info in page.sessions] == ["made"]
    client.delete_session("made")
    with pytest.raises(ApiError, match="session_not_found") as caught:
        client.get_session("made")
    assert caught.value.status == 404


def test_text_is_counted_in_the_tokens_of_the_served_model(client: Client) -> None:
    assert client.list_models() == ["tiny"]
    assert len(client.tokenize("one two")) > len(client.tokenize("one")) > 0


def test_a_refusal_inside_a_stream_request_is_an_api_error(client: Client) -> None:
    with pytest.raises(ApiError, match="messages") as caught:
        list(client.stream_chat([], session_id="nothing"))
    assert caught.value.status == 400


def test_an_ingest_that_cannot_work_is_not_tried_again(client: Client) -> None:
    with pytest.raises(ApiError, match="invalid_unicode"):
        client.ingest("broken", BytesIO(b"text \xff\n" * 3))
    with pytest.raises(ApiError, match="empty_prompt"):
        client.ingest("broken", BytesIO(b""))


def test_a_document_goes_on_at_the_last_commit_when_the_server_is_killed(server: ServerProcess, client: Client) -> None:
    client.ingest("whole", BytesIO(DOCUMENT))
    kills: list[int] = []

    def kill_once(progress: IngestProgress) -> None:
        if not kills:
            kills.append(progress.num_committed_bytes)
            server.kill9()
            server.start()

    result = client.ingest("cut", BytesIO(DOCUMENT), on_progress=kill_once)
    assert kills[0] > 0
    assert result.num_bytes == len(DOCUMENT)
    assert client.get_session("cut").tokens_digest == client.get_session("whole").tokens_digest


def test_an_answer_that_is_cut_raises_and_is_not_kept(server: ServerProcess, client: Client) -> None:
    client.chat("Hello.", session_id="killed", max_tokens=3)
    deltas = client.stream_chat("Go on.", session_id="killed", max_tokens=20000, ignore_eos=True)
    next(deltas)
    server.kill9()
    with pytest.raises(ConnectionFailedError):
        list(deltas)
    server.start()
    assert client.get_session("killed").version == 1


def test_nobody_listening_is_a_connection_failure() -> None:
    with Client(f"http://127.0.0.1:{find_free_port()}") as client, pytest.raises(ConnectionFailedError, match="127"):
        client.list_models()


def test_another_program_on_the_port_is_a_protocol_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

        thread = threading.Thread(target=answer_once)
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client, pytest.raises(ProtocolError):
            client.list_models()
        thread.join()


def test_the_asynchronous_client_does_the_same(server: ServerProcess) -> None:
    async def talk() -> None:
        async with AsyncClient(server.base_url) as client:
            seen: list[IngestProgress] = []
            result = await client.ingest("async", BytesIO(DOCUMENT), on_progress=seen.append)
            assert result.num_bytes == len(DOCUMENT)
            assert seen
            assert (await client.get_session("async")).position == result.session.position
            answer = await client.chat("Who?", session_id="async", read_only=True, max_tokens=4, temperature=0.0)
            stream = client.stream_chat("Who?", session_id="async", read_only=True, max_tokens=4, temperature=0.0)
            assert "".join([delta.text async for delta in stream]) == answer.text
            async with aclosing(
                client.stream_chat("On?", session_id="async", max_tokens=20000, ignore_eos=True)
            ) as deltas:
                await anext(deltas)
            kept = await client.chat("Still?", session_id="async", max_tokens=3, if_match=result.session.version)
            assert kept.session is not None
            await client.delete_session("async")
            with pytest.raises(ApiError, match="session_not_found"):
                await client.get_session("async")
            assert "async" not in [info.session_id for info in (await client.list_sessions()).sessions]
            assert (await client.create_session("async")).version == 0
            assert await client.list_models() == ["tiny"]
            assert await client.tokenize("one")

    asyncio.run(talk())


def test_cancelling_a_task_undoes_its_turn(server: ServerProcess) -> None:
    async def cancel() -> int:
        async with AsyncClient(server.base_url) as client:
            await client.chat("Hello.", session_id="cancelled", max_tokens=3)
            turn = asyncio.create_task(client.chat("Go on.", session_id="cancelled", max_tokens=20000, ignore_eos=True))
            await asyncio.sleep(0.3)
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)
            assert turn.cancelled()
            after = await client.chat("Still?", session_id="cancelled", max_tokens=3)
            assert after.session is not None
            return after.session.version

    assert asyncio.run(cancel()) == 2
