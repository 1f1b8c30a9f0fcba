"""How long a committed session takes to be ready to go on, from each tier, as the engine itself counts it: without
HTTP, which `python -m bench resume` includes.

The device still has the state of the last turn in a slot; the host has a copy, and the slot was used for something
else; the store has the snapshot, and the process nothing. Each includes reading the head, by which a copy is confirmed.
The three are timed in turns, on one session of one local store, so that the machine's mood meets them all.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import aclosing
from pathlib import Path
from statistics import median

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from bench.gpu.parts import Notes, Settings
from engine.config import EngineConfig
from engine.engine import Engine
from engine.sampling.sampling_params import SamplingParams
from engine.sessions import Message, SessionConfig, SessionManager, Storage, Turn, TurnRequest
from engine.stores.base import SessionKey
from engine.stores.local import LocalStore

KEY = SessionKey("bench", "resume")
TIERS = ("host", "device", "store")


class _Watch:
    """A SessionObserver that keeps the resumes, in the order in which they came."""

    def __init__(self) -> None:
        self.resumes: list[tuple[str, float]] = []

    def resumed(self, tier: str, seconds: float) -> None:
        self.resumes.append((tier, seconds))

    def restore_failed(self, reason: str) -> None:
        raise AssertionError(f"the session could not be loaded: {reason}")

    def committed(self, seconds: float, num_bytes: int, num_tokens: int) -> None:
        """What a commit costs is measured elsewhere."""


def measure(settings: Settings, notes: Notes) -> None:
    """Medians of several rounds on a temporary local store."""
    checkpoint = load_checkpoint(settings.model, settings.device)
    num_rounds = 5 * settings.num_rounds
    with tempfile.TemporaryDirectory(prefix="atlas-resume-") as name:
        resumes = asyncio.run(_resumes(checkpoint, num_rounds, Path(name) / "store", settings.device))
    # The first round finds the caches cold.
    assert [tier for tier, _ in resumes] == [*TIERS] * (num_rounds + 1)
    for tier, words in (("device", "from the device"), ("host", "from the host"), ("store", "from the local store")):
        notes.figure(f"{words}, seconds", median([seconds for found, seconds in resumes if found == tier][1:]))


async def _resumes(checkpoint: Checkpoint, num_rounds: int, folder: Path, device: str) -> list[tuple[str, float]]:
    engine = Engine(checkpoint, EngineConfig(max_num_sequences=1, device=device))
    storage = Storage(checkpoint.model.config, checkpoint.fingerprint)
    storage.attach(LocalStore(folder))
    watch = _Watch()

    def manager(max_host_num_bytes: int) -> SessionManager:
        config = SessionConfig(max_host_num_bytes=max_host_num_bytes)
        return SessionManager(engine, storage, checkpoint.tokenizer, checkpoint.chat_format, config, watch)

    with_copies, without_copies = manager(2**30), manager(0)
    engine.start()
    try:
        await _turn(with_copies, read_only=False)
        await _turn(without_copies, read_only=True)
        watch.resumes.clear()
        for _ in range(num_rounds + 1):
            # The only slot was last used by a reader that the first manager's copy knows nothing of.
            await _turn(with_copies, read_only=False)
            await _turn(with_copies, read_only=False)
            await _turn(without_copies, read_only=True)
    finally:
        await engine.stop()
        await asyncio.to_thread(storage.close)
    return watch.resumes


async def _turn(sessions: SessionManager, *, read_only: bool) -> None:
    request = TurnRequest(
        messages=(Message("user", "Where is Mary?"),),
        sampling=SamplingParams(max_tokens=1, temperature=0.0),
        session=KEY,
        read_only=read_only,
    )
    async with sessions.turn(request) as turn:
        assert isinstance(turn, Turn)
        async with aclosing(turn.outputs()) as outputs:
            async for _ in outputs:
                pass
        await turn.commit({})
