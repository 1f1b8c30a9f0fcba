"""Several answers to one prompt, in the engine: what is shared, what differs, and how they end together."""

import asyncio
import dataclasses
from contextlib import aclosing

import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import AtlasError, Draining, QueueFull
from engine.sampling.sampler import choice_seed, uniform
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import FinishReason, Sequence, SequenceOutput
from tests.engine.engines import running, until
from tests.engine.harness import answer, assert_same_session, checkpoint_that_raises_at, new_core, prompt
from tests.engine.sessions_harness import in_loop

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, seed=7, max_tokens=8, ignore_eos=True)
ENDLESS = dataclasses.replace(SAMPLED, max_tokens=100_000)


def asked(params: SamplingParams, name: str = "a", text: str = "where is the ball?") -> Sequence:
    return Sequence(name, prompt(text), params)


async def choices_of(engine: Engine, sequence: Sequence, num_choices: int) -> list[list[SequenceOutput]]:
    outputs: list[list[SequenceOutput]] = [[] for _ in range(num_choices)]
    with engine.places(sequence.tenant, num_choices):
        async with aclosing(engine.generate_choices([sequence], num_choices)) as stream:
            async for choice, output in stream:
                outputs[choice].append(output)
    return outputs


def tokens(outputs: list[SequenceOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


@pytest.mark.parametrize("num_choices", [2, 4, 12])
def test_the_first_choice_is_the_only_ones_answer_and_the_others_draw_their_own(num_choices: int) -> None:
    """With four slots and eight places to wait, twelve choices take turns."""

    async def test() -> None:
        alone = answer(new_core(), asked(SAMPLED))
        async with running() as engine:
            choices = await choices_of(engine, asked(SAMPLED), num_choices)
            assert engine.stats().prompt_tokens_total == len(prompt("where is the ball?")) - 1 + num_choices
        assert tokens(choices[0]) == list(alone.token_ids)
        assert choices[0][-1].state is not None
        assert_same_session(choices[0][-1].state, alone.state)
        assert len({tuple(tokens(choice)) for choice in choices}) == num_choices
        for choice in choices:
            assert choice[-1].finish_reason is FinishReason.LENGTH
            assert choice[-1].num_prompt_tokens == alone.last.num_prompt_tokens
            assert choice[-1].num_generated_tokens == 8

    in_loop(test)


def test_greedy_choices_are_all_the_one_answer() -> None:
    async def test() -> None:
        alone = answer(new_core(), asked(GREEDY))
        async with running() as engine:
            choices = await choices_of(engine, asked(GREEDY), 3)
        assert [tokens(choice) for choice in choices] == [list(alone.token_ids)] * 3

    in_loop(test)


def test_a_choice_is_drawn_alike_whatever_their_number_and_without_a_seed_never() -> None:
    async def test() -> None:
        async with running() as engine:
            few, many = await choices_of(engine, asked(SAMPLED), 2), await choices_of(engine, asked(SAMPLED), 5)
            assert [tokens(choice) for choice in few] == [tokens(choice) for choice in many[:2]]
            seedless = dataclasses.replace(SAMPLED, seed=None, temperature=2.0)
            assert len({tuple(tokens(choice)) for choice in await choices_of(engine, asked(seedless), 4)}) == 4

    in_loop(test)


def test_choices_go_on_from_a_session_with_pending_tokens() -> None:
    async def test() -> None:
        core = new_core()
        first = answer(core, asked(GREEDY))
        assert first.state.pending_token_ids
        alone = answer(core, Sequence("more", prompt("and then?")[1:], SAMPLED, first.state))
        async with running() as engine:
            more = Sequence("more", prompt("and then?")[1:], SAMPLED, first.state)
            choices = await choices_of(engine, more, 2)
        assert tokens(choices[0]) == list(alone.token_ids)
        assert choices[0][-1].state is not None
        assert_same_session(choices[0][-1].state, alone.state)
        assert choices[1][-1].num_prompt_tokens == alone.last.num_prompt_tokens

    in_loop(test)


def test_several_prompts_are_answered_as_each_alone_and_their_choices_follow_each_other() -> None:
    async def test() -> None:
        texts = ("where is the ball?", "who has it?", "when?")
        async with running() as engine:
            alone = [await choices_of(engine, asked(SAMPLED, text=text), 2) for text in texts]
            prompts = [asked(SAMPLED, text, text) for text in texts]
            for num_choices in (1, 2):
                outputs: list[list[int]] = [[] for _ in range(len(texts) * num_choices)]
                with engine.places("default", len(outputs)):
                    async with aclosing(engine.generate_choices(prompts, num_choices)) as stream:
                        async for number, output in stream:
                            outputs[number].extend(output.token_ids)
                assert outputs == [tokens(choice) for choices in alone for choice in choices[:num_choices]]
                prompts = [asked(SAMPLED, text, text) for text in texts]
            await until(lambda: engine.stats().num_slots_in_use == 0)

    in_loop(test)


def test_the_seeds_of_choices_do_not_run_into_each_other() -> None:
    draws = [uniform(choice_seed(11, choice), position) for choice in range(16) for position in range(100)]
    assert len(set(draws)) == len(draws)
    assert choice_seed(11, 0) == 11
    assert choice_seed(-1, 1) == choice_seed(2**64 - 1, 1)


def test_one_choice_that_fails_ends_them_all_and_leaves_no_slot_behind() -> None:
    async def test() -> None:
        async with running() as engine:
            choices = [tokens(choice) for choice in await choices_of(engine, asked(SAMPLED), 3)]
        token_id = next(each for each in choices[2][1:-1] if each not in [*choices[0], *choices[1], *prompt("")])
        async with running(checkpoint=checkpoint_that_raises_at(token_id, ValueError("broken"))) as engine:
            with pytest.raises(AtlasError):
                await choices_of(engine, asked(dataclasses.replace(SAMPLED, max_tokens=20)), 3)
            await until(lambda: engine.stats().num_slots_in_use == 0)
            assert engine.is_alive
            assert [len(tokens(choice)) for choice in await choices_of(engine, asked(GREEDY), 2)] == [8, 8]

    in_loop(test)


@pytest.mark.parametrize("is_writing", [False, True])
def test_leaving_the_choices_aborts_them_all_while_they_read_and_while_they_write(is_writing: bool) -> None:
    async def test() -> None:
        async with running() as engine:
            text = "where is the ball? " * (1 if is_writing else 2_000)
            task = asyncio.create_task(choices_of(engine, asked(ENDLESS, text=text), 3))
            await until(lambda: engine.stats().num_slots_in_use == (3 if is_writing else 1))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: engine.stats().num_slots_in_use == 0)
            assert engine.stats().num_waiting == 0

    in_loop(test)


def test_choices_take_a_place_each_from_the_beginning_and_give_them_back() -> None:
    async def test() -> None:
        async with running(EngineConfig(max_num_sequences=2, max_num_waiting=2)) as engine:
            with pytest.raises(QueueFull):
                await choices_of(engine, asked(GREEDY), 5)
            task = asyncio.create_task(choices_of(engine, asked(ENDLESS), 3))
            await until(lambda: engine.stats().num_running > 0)
            with pytest.raises(QueueFull):
                await choices_of(engine, asked(GREEDY, "b"), 2)
            async with aclosing(engine.generate(asked(GREEDY, "c"))) as outputs:
                waiting = asyncio.ensure_future(anext(outputs))
                await until(lambda: engine.stats().num_waiting == 2)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert len(await choices_of(engine, asked(GREEDY, "d"), 4)) == 4

    in_loop(test)


def test_a_drain_lets_choices_that_still_read_their_prompt_finish() -> None:
    async def test() -> None:
        async with running() as engine:
            task = asyncio.create_task(choices_of(engine, asked(GREEDY, text="where is the ball? " * 300), 3))
            await until(lambda: engine.stats().num_running == 1)
            await engine.drain(timeout_seconds=30)
            assert [len(tokens(choice)) for choice in await task] == [8, 8, 8]

    in_loop(test)


@pytest.mark.parametrize("is_writing", [False, True])
def test_a_drain_that_runs_out_of_time_ends_choices_with_length_or_their_prompt_with_draining(is_writing: bool) -> None:
    async def test() -> None:
        async with running() as engine:
            text = "where is the ball? " * (1 if is_writing else 20_000)
            task = asyncio.create_task(choices_of(engine, asked(ENDLESS, text=text), 3))
            await until(lambda: engine.stats().num_slots_in_use == (3 if is_writing else 1))
            await engine.drain(timeout_seconds=0.05)
            if is_writing:
                assert [choice[-1].finish_reason for choice in await task] == [FinishReason.LENGTH] * 3
            else:
                with pytest.raises(Draining):
                    await task

    in_loop(test)
