"""Virtual time between tenants, and what a prefill step may hold."""

import asyncio
import itertools
import random
from collections import Counter
from contextlib import ExitStack

import pytest

from engine.errors import Draining, QueueFull
from engine.scheduling.fair_share import FairShare
from engine.scheduling.pace import INITIAL_NUM_TOKENS, MIN_NUM_TOKENS, PrefillPace
from engine.scheduling.places import Places


def serve(share: FairShare, wanting: dict[str, int]) -> str:
    """One turn, as long as `wanting` says, to the tenant whose turn it is."""
    tenant = min(wanting, key=share.start)
    share.serve([(tenant, wanting[tenant])], wanting)
    return tenant


def test_tenants_who_always_want_get_the_same_tokens_whatever_the_length_of_their_turns() -> None:
    share, got = FairShare(), Counter[str]()
    lengths = {"a": 7, "b": 64, "c": 500}
    for _ in range(5000):
        tenant = serve(share, lengths)
        got[tenant] += lengths[tenant]
        if len(got) == 3:
            assert max(got.values()) - min(got.values()) <= 2 * 500


def test_a_pause_gives_no_credit() -> None:
    share = FairShare()
    for _ in range(1000):
        serve(share, {"busy": 10})
    served = [serve(share, {"busy": 10, "rested": 10}) for _ in range(20)]
    assert Counter(served) == {"busy": 10, "rested": 10}


def test_what_was_used_while_nobody_else_wanted_anything_is_not_held_against_anybody() -> None:
    share = FairShare()
    serve(share, {"busy": 10, "other": 10})
    for _ in range(1000):
        serve(share, {"busy": 10})
    served = [serve(share, {"busy": 10, "other": 10}) for _ in range(20)]
    assert served.count("busy") >= 9


def test_one_who_asks_for_little_now_and_then_is_served_at_once() -> None:
    share = FairShare()
    for turn in range(200):
        wanting = {"busy": 100, "rare": 10} if turn % 20 == 19 else {"busy": 100}
        assert serve(share, wanting) == ("rare" if "rare" in wanting else "busy")


def test_a_pace_finds_the_tokens_that_take_the_time_it_has() -> None:
    """On machines whose steps cost `price` seconds and `rate` a token more, with noise."""
    for price, rate in ((0.0, 1e-4), (0.004, 1e-4), (0.008, 3e-5), (0.002, 2e-5)):
        pace, noise = PrefillPace(0.01, 512), random.Random(1)
        late = []
        for step in range(400):
            seconds = (price + rate * pace.num_tokens) * noise.uniform(0.9, 1.1)
            pace.observe(pace.num_tokens, seconds)
            if step >= 100:
                late.append(seconds)
        late.sort()
        assert late[len(late) * 9 // 10] <= 1.1 * 0.01
        assert sum(late) / len(late) >= 0.85 * 0.01


@pytest.mark.parametrize("memory_chunk_size", [1, 16, 32, 64, 128])
def test_a_pace_whose_steps_end_at_borders_gets_within_a_chunk_of_the_last_and_never_beyond(
    memory_chunk_size: int,
) -> None:
    """400 tokens take the time, a fifth of which is the price of any step."""
    pace, last_border = PrefillPace(0.01, 512), 400 // memory_chunk_size * memory_chunk_size
    for _ in range(100):
        num_tokens = pace.num_tokens - pace.num_tokens % memory_chunk_size or pace.num_tokens
        assert num_tokens <= last_border
        pace.observe(num_tokens, 0.002 + 2e-5 * num_tokens)
    assert num_tokens >= last_border - memory_chunk_size


def test_a_pace_goes_no_lower_than_where_it_stops_helping_and_no_higher_than_it_may() -> None:
    pace = PrefillPace(0.01, 100)
    for _ in range(20):
        pace.observe(pace.num_tokens, 1.0)
    assert pace.num_tokens == MIN_NUM_TOKENS
    for _ in range(100):
        pace.observe(pace.num_tokens, 1e-6)
    assert pace.num_tokens == 100
    assert PrefillPace(0.01, 5).num_tokens == 5


def test_one_slow_step_costs_half_of_the_pace_at_most_and_short_steps_say_nothing_of_long_ones() -> None:
    pace = PrefillPace(0.01, 512)
    for _ in range(1000):
        pace.observe(5, 0.001)
    assert pace.num_tokens == INITIAL_NUM_TOKENS
    pace.observe(INITIAL_NUM_TOKENS, 3.0)
    assert pace.num_tokens == INITIAL_NUM_TOKENS // 2


def take(places: Places, stack: ExitStack, *tenants: str) -> int:
    """How many are taken, each tenant in turn, before the first refusal; the stack gives them back."""
    for num_taken, tenant in enumerate(itertools.cycle(tenants)):
        try:
            stack.enter_context(places.hold(tenant, 1))
        except QueueFull:
            return num_taken
    raise AssertionError


def test_the_only_tenant_may_have_every_place() -> None:
    with ExitStack() as stack:
        assert take(Places(12, is_multi_tenant=False), stack, "a") == 12


def test_one_of_several_tenants_leaves_half_of_the_places_and_two_a_third() -> None:
    with ExitStack() as stack:
        places = Places(12, is_multi_tenant=True)
        assert take(places, stack, "greedy") == 6
        assert take(places, stack, "second") == 3
        assert take(Places(12, is_multi_tenant=True), stack, "a", "b") == 8


def test_a_tenant_without_any_place_gets_the_last_one() -> None:
    for num_places in (1, 2, 3, 12):
        places = Places(num_places, is_multi_tenant=True)
        with ExitStack() as stack:
            for number in range(num_places):
                stack.enter_context(places.hold(f"tenant {number}", 1))
            with pytest.raises(QueueFull), places.hold("late", 1):
                pass


def test_places_come_back_whatever_happened_and_a_refusal_takes_none() -> None:
    places = Places(4, is_multi_tenant=True)
    for _ in range(10):
        with pytest.raises(ZeroDivisionError), places.hold("a", 4):
            assert places.num_held // 0
        with places.hold("a", 3), pytest.raises(QueueFull), places.hold("b", 2):
            pass
    assert places.num_held == 0


def waiters_of(places: Places, *tenants: str) -> tuple[list[asyncio.Task[None]], list[str]]:
    """Tasks that each wait for a place and keep it, and the tenants of those who have got one."""
    served: list[str] = []

    async def wait(tenant: str) -> None:
        async with places.wait(tenant):
            served.append(tenant)
            await asyncio.Event().wait()

    return [asyncio.create_task(wait(tenant)) for tenant in tenants], served


async def end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_who_waits_for_a_place_gets_it_in_turn_and_only_as_many_as_there_are() -> None:
    async def test() -> None:
        places = Places(2, is_multi_tenant=False)
        with places.hold("running", 1):
            with places.hold("running", 1):
                tasks, served = waiters_of(places, "a", "b", "c")
                await asyncio.sleep(0)
                assert served == []
            await asyncio.sleep(0)
            assert served == ["a"]
        await asyncio.sleep(0)
        assert served == ["a", "b"]
        await end(tasks)
        assert places.num_held == 0

    asyncio.run(test())


def test_one_who_leaves_with_a_place_just_granted_leaves_it_to_the_next() -> None:
    async def test() -> None:
        places = Places(1, is_multi_tenant=False)
        with places.hold("running", 1):
            tasks, served = waiters_of(places, "a", "b")
            await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert served == ["b"]
        await end(tasks)
        assert places.num_held == 0

    asyncio.run(test())


def test_who_waits_beyond_its_tenants_share_does_not_hold_up_the_others() -> None:
    async def test() -> None:
        places = Places(4, is_multi_tenant=True)
        with places.hold("greedy", 2), places.hold("other", 1):
            with places.hold("third", 1):
                tasks, served = waiters_of(places, "greedy", "fourth")
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert served == ["fourth"]
        await asyncio.sleep(0)
        assert served == ["fourth", "greedy"]
        await end(tasks)

    asyncio.run(test())


def test_all_who_wait_are_told_when_nobody_is_served_any_more() -> None:
    async def test() -> None:
        places = Places(1, is_multi_tenant=False)
        with places.hold("running", 1):
            tasks, _ = waiters_of(places, "a", "b")
            await asyncio.sleep(0)
            places.dismiss(Draining("the server is shutting down"))
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [Draining, Draining]
        await places.wait_until_all_free()

    asyncio.run(test())
