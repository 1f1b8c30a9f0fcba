"""Leaving in any phase gives everything back: the place, the lease, the room for states, the slot, zeroed."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import pytest

from engine.sampling.sampling_params import SamplingParams
from engine.sequence import FinishReason, Sequence
from engine.sessions import SessionConfig, Turn, TurnRequest
from engine.stores.base import SessionKey
from engine.stores.memory import MemoryStore
from tests.engine.engines import until
from tests.engine.harness import SMALL, checkpoint_that_says, new_core, prompt, tiny
from tests.engine.sessions_harness import ENDLESS, House, asked, house, in_loop, run
from tests.faults.wrapped_store import WrappedStore

OTHER = SessionKey("default", "other")
LEASE_SECONDS = 20.0
# A turn that writes holds two.
STATE_NUM_BYTES = 18_952
T = TypeVar("T")


class SlowStore(WrappedStore):
    """While `is_slow`, every call waits until `goes_on` is set."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.is_slow = False
        self.num_stuck = 0
        self.goes_on = threading.Event()

    def _call(self, work: Callable[[], T]) -> T:
        if self.is_slow:
            self.num_stuck += 1
            self.goes_on.wait(30)
            self.num_stuck -= 1
        return work()


async def take(it: House, request: TurnRequest) -> None:
    await run(it.sessions, request)


@asynccontextmanager
async def cancelled(task: asyncio.Task[Any]) -> AsyncIterator[None]:
    """Leaves once the task, cancelled at the block's end, has ended."""
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def assert_nothing_is_left(it: House, version: int) -> None:
    budget = it.sessions.budget
    await until(lambda: it.engine.stats().num_slots_in_use == it.engine.stats().num_waiting == 0)
    assert (budget.num_bytes, budget.num_waiting) == (0, 0)
    assert await it.head_version() == version
    async with asyncio.timeout(LEASE_SECONDS / 2):
        # Sooner than a lease runs out.
        _, turn = await run(it.sessions, asked("again"))
    assert turn.base_version == version


def test_a_turn_that_leaves_while_it_waits_for_the_session_or_for_room_takes_nothing_along() -> None:
    async def test() -> None:
        config = SessionConfig(lease_seconds=LEASE_SECONDS, max_inflight_num_bytes=3 * STATE_NUM_BYTES)
        async with house(config=config) as it:
            await take(it, asked("one"))
            async with cancelled(asyncio.create_task(take(it, asked("x", sampling=ENDLESS)))):
                await until(lambda: it.engine.stats().num_running == 1)
                assert it.sessions.budget.num_bytes == 2 * STATE_NUM_BYTES
                for request, num_waiting in ((asked("same"), 0), (asked("other", session=OTHER), 1)):
                    async with cancelled(asyncio.create_task(take(it, request))):
                        await asyncio.sleep(0.05)
                        assert it.sessions.budget.num_waiting == num_waiting
                    assert it.sessions.budget.num_waiting == 0
                    assert it.engine.stats().num_running == 1
                # The lease and the place of the one that waited for room are free too, and so is its room.
                await take(it, asked("?", session=SessionKey("default", "s"), read_only=True))
            await assert_nothing_is_left(it, 1)

    in_loop(test)


@pytest.mark.parametrize("tier", ["lease", "load"])
def test_a_turn_that_leaves_while_the_store_is_slow_takes_nothing_along(tier: str) -> None:
    async def test() -> None:
        store = SlowStore()
        async with house(store, SessionConfig(lease_seconds=LEASE_SECONDS, max_host_num_bytes=0)) as it:
            await take(it, asked("one"))
            store.is_slow = True
            request = asked("two", read_only=tier == "load")
            async with cancelled(asyncio.create_task(take(it, request))):
                await until(lambda: store.num_stuck == 1)
                assert it.sessions.budget.num_bytes == (STATE_NUM_BYTES if tier == "load" else 0)
                store.is_slow = False
                store.goes_on.set()
            await assert_nothing_is_left(it, 1)

    in_loop(test)


def test_a_turn_that_leaves_while_it_commits_is_committed_and_leaves_nothing_but_that() -> None:
    async def test() -> None:
        store = SlowStore()
        async with house(store, SessionConfig(lease_seconds=LEASE_SECONDS)) as it:
            await take(it, asked("one"))

            async def commit_slowly() -> None:
                async with it.sessions.turn(asked("two")) as turn:
                    assert isinstance(turn, Turn)
                    async with aclosing(turn.outputs()) as outputs:
                        async for _ in outputs:
                            pass
                    store.is_slow = True
                    await turn.commit({})

            async with cancelled(asyncio.create_task(commit_slowly())):
                await until(lambda: store.num_stuck == 1)
                # Held until the store has it, though nobody waits for the answer any more.
                asyncio.get_running_loop().call_later(0.1, store.goes_on.set)
                store.is_slow = False
            await assert_nothing_is_left(it, 2)

    in_loop(test)


def test_an_abort_while_a_stop_string_may_be_coming_frees_the_slot_at_once() -> None:
    """Everything that this model says may be the beginning of the stop string."""
    piece = next(
        tiny().tokenizer.decode_bytes(i) for i in range(300, 400) if tiny().tokenizer.decode_bytes(i).isalpha()
    )
    word = piece.decode()
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, stop=(word * 100,))
    core = new_core(SMALL, checkpoint_that_says({piece}))
    core.add(Sequence("holds", prompt("hello"), params))
    said = [output for _ in range(12) for output in core.step()]
    assert said
    assert "".join(output.text for output in said) == ""
    core.abort("holds")
    core.check_integrity()
    assert core.num_free_slots == 4
    assert [output.finish_reason for output in core.step()] == [FinishReason.ABORT]
    assert not core.has_work
