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

    def __init__(self, budget: StateBudget, num_states: int, *, transfer_of: str | None = None) -> None:
        self.holds = False
        self._leaves = asyncio.Event()
        self.task = asyncio.create_task(self._run(budget, num_states, transfer_of))

    async def _run(self, budget: StateBudget, num_states: int, transfer_of: str | None) -> None:
        async with budget.hold(num_states, transfer_of=transfer_of):
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
        uploads = [Holder(budget, 2, transfer_of="a") for _ in range(4)]
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


def test_tenants_share_the_half_of_transfers_however_many_of_ones_came_first() -> None:
    async def test() -> None:
        budget = new_budget(8)
        many = [Holder(budget, 2, transfer_of="many") for _ in range(6)]
        few = [Holder(budget, 2, transfer_of="few") for _ in range(2)]
        other = Holder(budget, 2, transfer_of="other")
        assert await holding(*many, *few, other) == [True, True, *[False] * 7]
        # Each place that becomes free goes to who has none, and of two who have as much to who was given less.
        await many[0].leave()
        assert await holding(*many[1:], *few, other) == [True, False, False, False, False, True, False, False]
        await many[1].leave()
        assert await holding(*many[2:], *few, other) == [False, False, False, False, True, False, True]
        await other.leave()
        assert await holding(*many[2:], *few) == [True, False, False, False, True, False]
        await few[0].leave()
        assert await holding(*many[2:], few[1]) == [True, False, False, False, True]
        await many[2].leave()
        await few[1].leave()
        assert await holding(*many[3:]) == [True, True, False]
        for each in many[3:]:
            await each.leave()
        assert (budget.num_bytes, budget.num_waiting) == (0, 0)

    in_loop(test)


def test_a_tenants_transfers_come_first_in_first_out_and_turns_keep_their_place_among_them() -> None:
    async def test() -> None:
        budget = new_budget(4)
        turn = Holder(budget, 4)
        waiting = [
            Holder(budget, 2, transfer_of="a"),
            Holder(budget, 2, transfer_of="a"),
            Holder(budget, 2),
            Holder(budget, 2, transfer_of="b"),
        ]
        assert await holding(turn, *waiting) == [True, False, False, False, False]
        await turn.leave()
        assert await holding(*waiting) == [True, False, True, False]
        await waiting[0].leave()
        assert await holding(*waiting[1:]) == [False, True, True]
        await waiting[3].leave()
        assert await holding(*waiting[1:3]) == [True, True]
        for each in waiting[1:3]:
            await each.leave()

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
        upload = Holder(budget, 1, transfer_of="a")
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
                async with budget.hold(1 + number % 3, transfer_of="abc"[number % 3] if number % 4 == 0 else None):
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
