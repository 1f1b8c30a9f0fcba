"""Penalties and bias, each beside the formula written out; and that they reach the answers of an engine."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.core import EngineCore
from engine.sampling.adjustment import Adjustment, adjusted
from engine.sampling.sampler import Draw, Sampler
from engine.sampling.sampling_params import SamplingParams
from engine.sequence import Sequence
from tests.engine.engines import running
from tests.engine.harness import answer, new_core, prompt, run, tiny
from tests.engine.sessions_harness import in_loop

VOCAB_SIZE = 40
END = 2
CPU = torch.device("cpu")
QUESTION = prompt("where is the ball?")
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
# So that it says what was said.
ECHOING = dataclasses.replace(GREEDY, repetition_penalty=0.3)


def reference(logits: Tensor, params: SamplingParams, context: list[int], said: list[int]) -> np.ndarray[Any, Any]:
    """The definition, one token of the vocabulary after the other."""
    counts, scores = Counter(said), logits.numpy().astype(np.float64)
    for token_id in range(len(scores)):
        if token_id in context or token_id in said:
            factor = params.repetition_penalty
            scores[token_id] = scores[token_id] / factor if scores[token_id] > 0 else scores[token_id] * factor
        scores[token_id] -= params.frequency_penalty * counts[token_id]
        scores[token_id] -= params.presence_penalty * (counts[token_id] > 0)
        scores[token_id] += dict(params.logit_bias).get(token_id, 0.0)
    return scores


def adjustment(params: SamplingParams, context: list[int], said: list[int], vocab_size: int = VOCAB_SIZE) -> Adjustment:
    made = Adjustment(params, context, vocab_size, CPU)
    for token_id in said:
        made.note(token_id)
    return made


PARAMS = st.builds(
    SamplingParams,
    presence_penalty=st.sampled_from([0.0, 1.25, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    logit_bias=st.sampled_from([(), ((5, 1.5), (6, -100.0), (7, 100.0))]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_p=st.sampled_from([1.0, 0.8]),
    top_k=st.sampled_from([None, 1, 7, VOCAB_SIZE]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    logprobs=st.sampled_from([None, 0, 2]),
)
TOKEN_IDS = st.lists(st.integers(3, VOCAB_SIZE - 1), max_size=12)


@given(PARAMS, TOKEN_IDS, TOKEN_IDS, st.integers(0, 100))
def test_scores_are_what_the_formulas_say(
    params: SamplingParams, context: list[int], said: list[int], seed: int
) -> None:
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
    scores = adjusted(logits, [adjustment(params, context, said)])
    np.testing.assert_allclose(scores[0].numpy(), reference(logits[0], params, context, said), rtol=0, atol=2e-5)


@settings(deadline=None)
@given(st.lists(st.tuples(PARAMS, TOKEN_IDS, TOKEN_IDS), min_size=2, max_size=6), st.integers(0, 100))
def test_rows_of_any_wishes_draw_and_are_told_together_what_they_are_alone(
    rows: list[tuple[SamplingParams, list[int], list[int]]], seed: int
) -> None:
    sampler = Sampler(VOCAB_SIZE, END, [0, 1, 2], CPU)
    logits = torch.randn(len(rows), VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
    draws = [
        Draw(params, 5, row, row % 2 == 0, adjustment(params, context, said) if params.adjusts_logits else None)
        for row, (params, context, said) in enumerate(rows)
    ]
    together = sampler.sample(logits, draws)
    alone = [sampler.sample(logits[row : row + 1], [draw]) for row, draw in enumerate(draws)]
    assert together.token_ids == [each.token_ids[0] for each in alone]
    assert together.logprobs == {row: each.logprobs[0] for row, each in enumerate(alone) if each.logprobs}
    assert together.logprobs.keys() == {row for row, draw in enumerate(draws) if draw.params.logprobs is not None}


def logits_of(token_ids: list[int]) -> Tensor:
    logits: Tensor = tiny().model(torch.tensor([token_ids])).logits[0, -1]
    return logits


def expected_answer(params: SamplingParams, fed: list[int], context: list[int]) -> list[int]:
    """Greedy, one forward of everything for each token. context: of what was fed, what this call has."""
    writable = [token_id for token_id in range(VOCAB_OF_TINY) if tiny().tokenizer.decode_bytes(token_id)]
    said: list[int] = []
    for _ in range(params.max_tokens):
        scores = reference(logits_of([*fed, *said]), params, context, said)
        said.append(writable[int(scores[writable].argmax())])
    return said


VOCAB_OF_TINY = tiny().tokenizer.vocab_size
WISHES: dict[str, dict[str, Any]] = {
    "presence": {"presence_penalty": 2.0},
    "frequency": {"frequency_penalty": 0.4},
    "negative frequency": {"frequency_penalty": -0.4},
    "repetition": {"repetition_penalty": 1.5},
    "bias": {"logit_bias": ((20, 3.0), (21, 2.9))},
    "all": {
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.2,
        "logit_bias": ((20, 3.0), (21, 2.9)),
    },
}


@pytest.mark.parametrize("name", WISHES)
def test_an_answer_is_what_the_formulas_make_of_the_models_logits_and_not_what_it_is_without(name: str) -> None:
    params = dataclasses.replace(GREEDY, **WISHES[name])
    written = answer(new_core(), Sequence("a", QUESTION, params))
    assert list(written.token_ids) == expected_answer(params, QUESTION, QUESTION)
    assert written.token_ids != answer(new_core(), Sequence("a", QUESTION, GREEDY)).token_ids


def test_answers_with_wishes_of_their_own_are_the_same_alone_and_together() -> None:
    sequences = {name: dataclasses.replace(GREEDY, **wishes) for name, wishes in WISHES.items()}

    def ask(core: EngineCore, *names: str) -> dict[str, tuple[int, ...]]:
        answers = run(core, *(Sequence(name, QUESTION, sequences[name]) for name in names))
        return {name: each.token_ids for name, each in answers.items()}

    alone = {name: ask(new_core(), name)[name] for name in WISHES}
    assert ask(new_core(), *WISHES) == alone


def test_a_repetition_penalty_counts_the_whole_prompt_for_each_of_several_choices() -> None:
    async def test() -> None:
        said: list[list[int]] = [[], [], []]
        async with running() as engine:
            with engine.places("default", 3):
                async for number, output in engine.generate_choices([Sequence("a", QUESTION, ECHOING)], 3):
                    said[number] += output.token_ids
        assert said == [expected_answer(ECHOING, QUESTION, QUESTION)] * 3
        assert said[0] != expected_answer(ECHOING, QUESTION, QUESTION[-1:])

    in_loop(test)


def test_a_repetition_penalty_counts_what_this_call_feeds_and_not_what_lies_in_the_memory() -> None:
    half = len(QUESTION) // 2
    fed = answer(new_core(), Sequence("fed", QUESTION[:half])).state
    resumed = answer(new_core(), Sequence("a", QUESTION[half:], ECHOING, fed))
    assert list(resumed.token_ids) == expected_answer(ECHOING, QUESTION, QUESTION[half:])
    assert list(resumed.token_ids) != expected_answer(ECHOING, QUESTION, QUESTION)


def test_min_p_keeps_exactly_the_tokens_that_are_likely_enough() -> None:
    row = torch.full((1, VOCAB_SIZE), -100.0)
    row[0, 5:9] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    sampler = Sampler(VOCAB_SIZE, END, [0, 1, 2], CPU)

    def drawn(**params: Any) -> set[int | None]:
        draws = [Draw(SamplingParams(**params), 7, position, can_end=True) for position in range(300)]
        return set(sampler.sample(row.expand(300, -1), draws).token_ids)

    assert drawn(min_p=0.05) == {5, 6, 7, 8}
    assert drawn(min_p=0.2) == {5, 6, 7}
    assert drawn(min_p=0.31) == {5, 6}
    assert drawn(min_p=1.0) == {5}
    # At twice the temperature the ratios to the likeliest are 0.77, 0.55 and 0.32.
    assert drawn(min_p=0.5, temperature=2.0) == {5, 6, 7}
    # top_p is of what min_p left: 0.5 / 0.8 is 0.625 of two.
    assert drawn(min_p=0.31, top_p=0.6) == {5}
    assert drawn(min_p=0.2, top_k=2) == {5, 6}
