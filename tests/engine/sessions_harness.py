"""What the session tests share: a manager over the tiny float64 model and a store of the test's own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from atlas_model.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.engine import Engine
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import FinishReason, SequenceState
from engine.sessions import (
    IngestProgress,
    IngestRequest,
    IngestResult,
    Message,
    RepeatedIngest,
    RequestIdentity,
    SessionConfig,
    SessionManager,
    Storage,
    StoredTurn,
    TenantQuota,
    Turn,
    TurnRequest,
)
from engine.sessions.quotas import UNLIMITED
from engine.snapshots.codecs import Codec
from engine.stores.base import Head, SessionKey, Store
from engine.stores.memory import MemoryStore
from tests.engine.harness import SMALL, tiny

KEY = SessionKey("default", "s")
GREEDY = SamplingParams(temperature=0, max_tokens=6)
ENDLESS = SamplingParams(temperature=0, max_tokens=100_000, ignore_eos=True)


@dataclass
class Observed:
    """A SessionObserver that remembers."""

    tiers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)

    def resumed(self, tier: str, seconds: float) -> None:
        assert seconds >= 0
        self.tiers.append(tier)

    def restore_failed(self, reason: str) -> None:
        self.failures.append(reason)

    def committed(self, seconds: float, num_bytes: int, num_tokens: int) -> None:
        assert seconds >= 0
        assert num_bytes > 0 or num_tokens == 0
        self.num_tokens.append(num_tokens)


@dataclass
class House:
    """One server's worth of sessions."""

    engine: Engine
    storage: Storage
    sessions: SessionManager
    observed: Observed

    async def head_version(self, key: SessionKey = KEY) -> int | None:
        head = await self.storage.read_head(key)
        return None if head is None else head.version

    async def committed(self, key: SessionKey = KEY) -> tuple[Head, SequenceState | None]:
        async with self.sessions.committed_state(key) as told:
            return told

    async def state(self, key: SessionKey = KEY) -> SequenceState:
        _, record = await self.storage.load(key)
        assert record is not None
        return record.state


@asynccontextmanager
async def house(
    store: Store | None = None,
    config: SessionConfig | None = None,
    engine_config: EngineConfig = SMALL,
    checkpoint: Checkpoint | None = None,
    quota: TenantQuota = UNLIMITED,
    codec: Codec = Codec.NONE,
) -> AsyncIterator[House]:
    checkpoint = checkpoint or tiny()
    engine = Engine(checkpoint, engine_config)
    engine.start()
    storage = Storage(checkpoint.model.config, checkpoint.fingerprint, quota, codec)
    storage.attach(store or MemoryStore())
    observed = Observed()
    config = config or SessionConfig(lease_seconds=1.0, commit_num_tokens=64)
    sessions = SessionManager(engine, storage, checkpoint.tokenizer, checkpoint.chat_format, config, observed)
    try:
        yield House(engine, storage, sessions, observed)
    finally:
        await engine.stop()
        storage.close()


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    async def with_deadline() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(with_deadline())


def asked(*texts: str, **fields: Any) -> TurnRequest:
    """A turn of `KEY` (or of `session=`): user and assistant in turns, the user first."""
    messages = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))
    return TurnRequest(**{"messages": messages, "sampling": GREEDY, "session": KEY, "digest": repr(texts), **fields})


async def create(
    sessions: SessionManager, metadata: Mapping[str, str], key: SessionKey = KEY, ttl_seconds: int | None = None
) -> Head:
    with sessions.versions() as versions:
        return await versions.create(key, metadata, ttl_seconds, RequestIdentity())


async def run(sessions: SessionManager, request: TurnRequest) -> tuple[str, Turn]:
    """The answer's text, committed; the turn is there to be looked at."""
    async with sessions.turn(request) as turn:
        assert isinstance(turn, Turn), "this turn was run before"
        reason = None
        async with aclosing(turn.outputs()) as outputs:
            async for _, output in outputs:
                reason = output.finish_reason
        assert reason in (FinishReason.STOP, FinishReason.LENGTH)
        await turn.commit({"text": turn.text})
    return turn.text, turn


async def replayed(sessions: SessionManager, request: TurnRequest) -> StoredTurn:
    async with sessions.turn(request) as turn:
        assert isinstance(turn, StoredTurn), "this turn was not run before"
        return turn


async def in_pieces(raw: bytes, num_bytes: int) -> AsyncIterator[bytes]:
    for start in range(0, len(raw), num_bytes):
        yield raw[start : start + num_bytes]


async def ingest(
    sessions: SessionManager, pieces: AsyncIterator[bytes], **fields: Any
) -> tuple[list[IngestProgress], IngestResult]:
    progress: list[IngestProgress] = []
    async with sessions.ingest(IngestRequest(**{"session": KEY, **fields}), pieces) as steps, aclosing(steps):
        async for step in steps:
            if isinstance(step, IngestResult):
                return progress, step
            progress.append(step)
    raise AssertionError("the ingest ended without a result")


def text_of(num_lines: int, seed: int = 0) -> bytes:
    lines: Iterable[str] = (
        f"line {seed + number} says that the code is {(seed + number) * 37 % 101}\n" for number in range(num_lines)
    )
    return "".join(lines).encode()


def repeated(result: IngestResult) -> RepeatedIngest:
    """What is answered to who sends the same document again."""
    return RepeatedIngest(**{field.name: getattr(result, field.name) for field in fields(result)})
