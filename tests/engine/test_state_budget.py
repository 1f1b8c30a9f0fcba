"""Room for states: never more than there is, first come first served, and given back whatever happens."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from engine.errors import QueueFull
from engine.sessions.state_budget import StateBudget
from tests.engine.engines import until
from tests.engine.sessions_harness import in_loop

STATE_NUM_BYTES = 10


def new_budget(num_states: int, max_num_waiting: int = 8) -> StateBudget:
    return StateBudget(STATE_NUM_BYTES, num_states * STATE_NUM_BYTES, max_num_waiting)


class Holder:
    """A request that holds room until it is told to leave."""

    def __init__(self, budget: StateBudget, num_states: int, *, is_transfer: bool = False) -> None:
        self.holds = False
        self._leaves = asyncio.Event()
        self.task = asyncio.create_task(self._run(budget, num_states, is_transfer))

    async def _run(self, budget: StateBudget, num_states: int, is_transfer: bool) -> None:
        async with budget.hold(num_states, is_transfer=is_transfer):
            self.holds = True
            await self._leaves.wait()
        self.holds = False

    async def leave(self) -> None:
        self._leaves.set()
        await self.task


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def holding(*holders: Holder) -> list[bool]:
    await settled()
    return [holder.holds for holder in holders]


def test_what_is_held_is_counted_in_bytes_and_given_back() -> None:
    async def test() -> None:
        budget = new_budget(4)
        async with budget.hold(3):
            assert budget.num_bytes == 30
            async with budget.hold(0):
                assert budget.num_bytes == 30
        assert budget.num_bytes == 0
        with pytest.raises(KeyError):
            async with budget.hold(4):
                raise KeyError
        assert budget.num_bytes == 0

    in_loop(test)


def test_whoever_does_not_fit_waits_and_is_not_overtaken_by_those_who_would() -> None:
    async def test() -> None:
        budget = new_budget(4)
        first, large, small = (Holder(budget, num_states) for num_states in (3, 4, 1))
        assert await holding(first, large, small) == [True, False, False]
        assert budget.num_waiting == 2
        await first.leave()
        assert await holding(large, small) == [True, False]
        await large.leave()
        assert await holding(small) == [True]
        await small.leave()
        assert (budget.num_bytes, budget.num_waiting) == (0, 0)

    in_loop(test)


def test_whoever_wants_more_than_there_is_gets_it_alone() -> None:
    async def test() -> None:
        budget = new_budget(4)
        small, huge, later = (Holder(budget, num_states) for num_states in (1, 9, 1))
        assert await holding(small, huge, later) == [True, False, False]
        await small.leave()
        assert await holding(huge, later) == [True, False]
        await huge.leave()
        assert await holding(later) == [True]
        await later.leave()

    in_loop(test)


def test_transfers_get_half_and_turns_do_not_wait_behind_them_for_it() -> None:
    async def test() -> None:
        budget = new_budget(8)
        uploads = [Holder(budget, 2, is_transfer=True) for _ in range(4)]
        turns = [Holder(budget, 2) for _ in range(3)]
        assert await holding(*uploads) == [True, True, False, False]
        assert await holding(*turns) == [True, True, False]
        await uploads[0].leave()
        # The third upload was there before the third turn.
        assert await holding(*uploads[1:], turns[2]) == [True, True, False, False]
        for each in (*uploads, *turns):
            await each.leave()
        assert budget.num_bytes == 0

    in_loop(test)


def test_a_line_that_is_full_refuses_at_once_and_has_room_again_after_a_leave() -> None:
    async def test() -> None:
        budget = new_budget(1, max_num_waiting=1)
        first, second = Holder(budget, 1), Holder(budget, 1)
        await settled()
        with pytest.raises(QueueFull):
            async with budget.hold(1):
                pass
        await first.leave()
        third = Holder(budget, 1)
        assert await holding(second, third) == [True, False]
        # The line of those who transfer is another one.
        upload = Holder(budget, 1, is_transfer=True)
        assert await holding(upload) == [False]
        upload.task.cancel()
        await second.leave()
        await third.leave()
        async with budget.hold(1):
            pass

    in_loop(test)


@pytest.mark.parametrize("cancels_first", [True, False])
def test_who_leaves_while_waiting_or_in_the_moment_of_being_let_in_takes_nothing_along(cancels_first: bool) -> None:
    async def test() -> None:
        budget = new_budget(1)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(budget.hold(1))
            waiting, later = Holder(budget, 1), Holder(budget, 1)
            await settled()
            if cancels_first:
                waiting.task.cancel()
        if not cancels_first:
            waiting.task.cancel()
        await asyncio.gather(waiting.task, return_exceptions=True)
        await until(lambda: later.holds)
        await later.leave()
        assert (budget.num_bytes, budget.num_waiting) == (0, 0)

    in_loop(test)


def test_a_thousand_at_once_never_hold_more_than_there_is() -> None:
    async def test() -> None:
        budget = new_budget(10, max_num_waiting=100)
        peak = num_refused = 0

        async def work(number: int) -> None:
            nonlocal peak, num_refused
            try:
                async with budget.hold(1 + number % 3, is_transfer=number % 4 == 0):
                    peak = max(peak, budget.num_bytes)
                    await asyncio.sleep(0.001 * (number % 5))
            except QueueFull:
                num_refused += 1

        tasks = [asyncio.create_task(work(number)) for number in range(1000)]
        await asyncio.sleep(0.002)
        for task in tasks[::7]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert 80 <= peak <= 100
        assert num_refused > 500
        assert (budget.num_bytes, budget.num_waiting) == (0, 0)

    in_loop(test)
