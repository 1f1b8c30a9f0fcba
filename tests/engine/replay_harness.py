"""What the tests of replays share: a replay in one call, and a session's head, log and record."""

from contextlib import aclosing

from engine.sessions import (
    ReplayProgress,
    ReplayRequest,
    ReplayResult,
    RequestIdentity,
    SessionConfig,
)
from engine.snapshots.snapshot import SessionRecord
from engine.stores.base import Head, SessionKey
from tests.engine.sessions_harness import (
    KEY,
    House,
)

LOGGING = SessionConfig(lease_seconds=1.0, commit_num_tokens=64, token_log=True)


async def replay(
    it: House, key: SessionKey = KEY, if_match: int | None = None, identity: RequestIdentity | None = None
) -> tuple[list[ReplayProgress], ReplayResult]:
    progress: list[ReplayProgress] = []
    request = ReplayRequest(key, if_match, identity or RequestIdentity())
    async with it.sessions.replay(request) as steps, aclosing(steps):
        async for step in steps:
            if isinstance(step, ReplayResult):
                return progress, step
            progress.append(step)
    raise AssertionError("the replay ended without a result")


async def head_of(it: House, key: SessionKey = KEY) -> Head:
    head = await it.storage.read_head(key)
    assert head is not None
    return head


async def log_of(it: House, key: SessionKey = KEY) -> bytes:
    head = await head_of(it, key)
    assert head.log_id is not None
    assert head.log_num_bytes is not None
    return bytes(await it.storage.load_log(key, head.log_id, head.log_num_bytes))


async def record_of(it: House, key: SessionKey = KEY) -> SessionRecord:
    _, record = await it.storage.load(key)
    assert record is not None
    return record
