"""A session made anew from its token log, by both clients and by the command."""

import asyncio
from io import BytesIO

import pytest

from clients import ApiError, AsyncClient, Client, ProtocolError, ReplayProgress
from clients.replay import parse_event
from tests.clients.test_cli import atlas
from tests.clients.test_client import DOCUMENT
from tests.server_process import ServerProcess


def test_a_replay_tells_its_progress_and_keeps_what_was_read(client: Client) -> None:
    client.ingest("replay", BytesIO(DOCUMENT))
    before = client.get_session("replay")
    assert before.token_log_num_bytes is not None
    assert before.token_log_num_bytes > 4 * before.position
    seen: list[ReplayProgress] = []
    result = client.replay_session("replay", seen.append)
    after = client.get_session("replay")
    assert result.num_tokens == before.position
    assert (result.session.version, result.session.position) == (after.version, after.position)
    assert (after.version, after.tokens_digest) == (before.version + 1, before.tokens_digest)
    fed = [progress.num_tokens for progress in seen]
    assert fed == sorted(fed)
    assert {progress.num_total_tokens for progress in seen} == {before.position}


def test_the_asynchronous_client_replays_too(server: ServerProcess, client: Client) -> None:
    client.chat("Who?", session_id="replay-async", max_tokens=3)

    async def replay() -> None:
        async with AsyncClient(server.base_url) as connected:
            seen: list[ReplayProgress] = []
            result = await connected.replay_session("replay-async", seen.append)
            assert (result.session.version, len(seen) > 0) == (2, True)
            with pytest.raises(ApiError, match="session_not_found"):
                await connected.replay_session("replay-nobody")

    asyncio.run(replay())
    assert client.get_session("replay-async").version == 2


def test_the_command_replays_and_says_so_in_a_line(server: ServerProcess, client: Client) -> None:
    client.ingest("replay-cli", BytesIO(DOCUMENT))
    info = client.get_session("replay-cli")
    shown = atlas(server.base_url, "sessions", "replay", "replay-cli")
    assert (shown.returncode, shown.stderr, shown.stdout.count("\n")) == (0, "", 1)
    assert shown.stdout.startswith(f"{info.position:,} tokens replayed in ")
    assert f"session replay-cli is at version {info.version + 1}, token {info.position:,} (disk)" in shown.stdout
    nobody = atlas(server.base_url, "sessions", "replay", "replay-nobody")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.startswith("atlas: session_not_found: ")


@pytest.mark.parametrize("data", ["[]", "{}", '{"tokens": 1}', '{"tokens": 1, "done": true, "seconds": 1}'])
def test_an_event_that_says_too_little_is_a_protocol_error(data: str) -> None:
    with pytest.raises(ProtocolError):
        parse_event(data)
