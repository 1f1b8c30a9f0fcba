"""Turns with several answers: the session learns the first one, and is told so (SESSIONS.md 1.4)."""

from contextlib import aclosing
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import SessionDiverged
from engine.sampling.sampling_params import SamplingParams
from engine.sessions import Turn
from engine.stores.base import SessionKey
from tests.engine.engines import until
from tests.engine.harness import assert_same_session
from tests.engine.sessions_harness import ENDLESS, KEY, asked, house, in_loop, run

SAMPLED = SamplingParams(temperature=1.0, seed=3, max_tokens=10, ignore_eos=True)
ONE = SessionKey("default", "one-choice")


def test_the_session_is_what_it_would_be_with_one_choice() -> None:
    """The same tokens and the same ledger; the tensors within the tolerance of another split."""

    async def test() -> None:
        async with house(engine_config=EngineConfig()) as it:
            for question in ("one", "two"):
                several, turn = await run(it.sessions, asked(question, sampling=SAMPLED, num_choices=4))
                single, only = await run(it.sessions, asked(question, sampling=SAMPLED, session=ONE))
                assert several == single
                assert len({answer.text for answer in turn.answers}) == 4
                assert [answer.finish_reason for answer in turn.answers] == ["length"] * 4
                assert turn.usage.num_prompt_tokens == only.usage.num_prompt_tokens
                assert turn.usage.num_written_tokens == only.usage.num_written_tokens
                assert turn.usage.num_completion_tokens == 4 * only.usage.num_completion_tokens
            (_, left), (_, right) = await it.storage.load(KEY), await it.storage.load(ONE)
            assert left is not None
            assert right is not None
            assert left.ledger == right.ledger
            assert_same_session(left.state, right.state)
            assert await it.head_version() == 2
            # One session went on once with four choices, the other once with one.
            assert it.observed.tiers == ["device", "device"]

    in_loop(test)


def test_going_on_from_another_choice_is_a_divergence() -> None:
    async def test() -> None:
        async with house() as it:
            _, turn = await run(it.sessions, asked("one", sampling=SAMPLED, num_choices=3))
            first, second, _ = (answer.text for answer in turn.answers)
            with pytest.raises(SessionDiverged):
                await run(it.sessions, asked("one", second, "two"))
            await run(it.sessions, asked("one", first, "two"))
            assert await it.head_version() == 2

    in_loop(test)


@pytest.mark.parametrize("fields", [{"read_only": True}, {"session": None}])
def test_choices_of_a_turn_that_writes_nothing_are_those_of_one_that_would(fields: dict[str, Any]) -> None:
    async def test() -> None:
        async with house() as it:
            if fields.get("read_only"):
                await run(it.sessions, asked("one"))
            reading = asked("two", sampling=SAMPLED, num_choices=3, **fields)
            answers = (await run(it.sessions, reading))[1].answers
            assert (await run(it.sessions, reading))[1].answers == answers
            assert await it.head_version() == (1 if fields.get("read_only") else None)
            writing = asked("two", sampling=SAMPLED, num_choices=3)
            assert (await run(it.sessions, writing))[1].answers == answers

    in_loop(test)


def test_choices_that_are_left_leave_the_session_and_no_slot_behind() -> None:
    async def test() -> None:
        async with house() as it:
            await run(it.sessions, asked("one"))

            async def leave() -> None:
                async with it.sessions.turn(asked("two", sampling=ENDLESS, num_choices=3)) as turn:
                    assert isinstance(turn, Turn)
                    seen = set()
                    async with aclosing(turn.outputs()) as outputs:
                        async for choice, _ in outputs:
                            seen.add(choice)
                            if seen == {0, 1, 2}:
                                raise ConnectionError

            with pytest.raises(ConnectionError):
                await leave()
            await until(lambda: it.engine.stats().num_slots_in_use == 0)
            assert await it.head_version() == 1
            await run(it.sessions, asked("two", num_choices=2))
            assert await it.head_version() == 2

    in_loop(test)
