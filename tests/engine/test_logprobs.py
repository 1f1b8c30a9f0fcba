"""What is told about tokens: the model's own log-softmax, for each that is shown and for those of the prompt."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_model.checkpoint import Checkpoint
from engine.checking import check_together
from engine.core import EngineCore
from engine.engine import Engine
from engine.errors import InvalidRequest
from engine.sampling.logprobs import PromptTargets, TokenLogprob, logprobs_of
from engine.sampling.sampling_params import MAX_NUM_LOGPROBS, MAX_NUM_LOGPROBS_TOGETHER, SamplingParams
from engine.sequence import Sequence, SequenceOutput
from tests.engine.engines import running
from tests.engine.harness import (
    SMALL,
    answer,
    ascii_words,
    checkpoint_that_says,
    new_core,
    prompt,
    tiny,
)
from tests.engine.sessions_harness import in_loop

QUESTION = prompt("where is the ball?")
TOLD = SamplingParams(seed=4, max_tokens=14, ignore_eos=True, logprobs=3)


def outputs_of(
    sequence: Sequence, checkpoint: Checkpoint | None = None, core: EngineCore | None = None
) -> list[SequenceOutput]:
    core = core or new_core(checkpoint=checkpoint)
    core.add(sequence)
    outputs = []
    while core.has_work:
        outputs += core.step()
    return [output for output in outputs if output.sequence_id == sequence.sequence_id]


def told(outputs: Iterable[SequenceOutput]) -> list[TokenLogprob]:
    return [each for output in outputs for each in output.logprobs]


def model_logprobs(token_ids: list[int], checkpoint: Checkpoint | None = None) -> Tensor:
    """[T, V]: what the model believes after each of the tokens, by one full forward."""
    logits: Tensor = (checkpoint or tiny()).model(torch.tensor([token_ids])).logits
    return logits[0].log_softmax(1)


def assert_told(actual: TokenLogprob | None, token_id: int, expected: Tensor, num_top: int) -> None:
    assert actual is not None
    assert actual.token_id == token_id
    values, indices = expected.topk(num_top)
    assert [each for each, _ in actual.top] == indices.tolist()
    numbers = [actual.logprob, *(value for _, value in actual.top)]
    torch.testing.assert_close(
        torch.tensor(numbers).double(), torch.cat([expected[token_id, None], values]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 1.7, "top_p": 0.8, "top_k": 50, "logprobs": 0},
        {"presence_penalty": 1.5, "repetition_penalty": 1.3, "logit_bias": ((20, 30.0),), "logprobs": 20},
    ],
)
def test_each_token_of_an_answer_is_told_as_the_model_alone_believes(changes: dict[str, Any]) -> None:
    params = dataclasses.replace(TOLD, **changes)
    outputs = outputs_of(Sequence("a", QUESTION, params))
    token_ids = [token_id for output in outputs for token_id in output.token_ids]
    expected = model_logprobs([*QUESTION, *token_ids])
    assert len(told(outputs)) == len(token_ids) == 14
    assert params.logprobs is not None
    for index, (each, token_id) in enumerate(zip(told(outputs), token_ids, strict=True)):
        assert_told(each, token_id, expected[len(QUESTION) - 1 + index], params.logprobs)


def test_who_does_not_ask_is_told_nothing_and_who_does_draws_and_is_told_the_same_alone_and_beside_others() -> None:
    alone = outputs_of(Sequence("asks", QUESTION, TOLD))
    core = new_core()
    core.add(Sequence("asks", QUESTION, TOLD))
    silent = outputs_of(Sequence("silent", QUESTION, dataclasses.replace(TOLD, logprobs=None)), core=core)
    assert [each for output in silent for each in output.token_ids] == [each.token_id for each in told(alone)]
    assert {(output.logprobs, output.prompt_logprobs) for output in silent} == {((), None)}
    core.add(Sequence("silent", QUESTION, dataclasses.replace(TOLD, logprobs=None)))
    beside = outputs_of(Sequence("asks", QUESTION, TOLD), core=core)
    for actual, expected in zip(told(beside), told(alone), strict=True):
        assert actual.token_id == expected.token_id
        assert actual.logprob == pytest.approx(expected.logprob, abs=1e-9)


@pytest.mark.parametrize("num_piece_tokens", [1, 3, 7, 32])
def test_a_prompt_is_told_alike_whatever_pieces_it_is_read_in(num_piece_tokens: int) -> None:
    core = new_core(dataclasses.replace(SMALL, max_num_piece_tokens=num_piece_tokens))
    token_ids = prompt("the owl sat on the tower\n" * 2)
    core.add(Sequence("neighbour", token_ids[5:], dataclasses.replace(TOLD, prompt_logprobs=1)))
    outputs = outputs_of(Sequence("a", token_ids, dataclasses.replace(TOLD, prompt_logprobs=4)), core=core)
    expected = model_logprobs(token_ids)
    for output in outputs:
        assert output.prompt_logprobs is not None
        first, *others = output.prompt_logprobs
        assert first is None
        for index, (each, token_id) in enumerate(zip(others, token_ids[1:], strict=True)):
            assert_told(each, token_id, expected[index], 4)


def test_a_prompt_read_as_one_is_told_what_single_steps_say() -> None:
    (output,) = outputs_of(Sequence("a", QUESTION, prompt_logprobs=0))
    assert output.prompt_logprobs is not None
    state = tiny().model.initial_state(1)
    for token_id, after in zip(QUESTION, output.prompt_logprobs[1:], strict=False):
        logits, state = tiny().model.step(torch.tensor([token_id]), state)
        assert after is not None
        assert after.logprob == pytest.approx(float(logits[0].log_softmax(0)[after.token_id]), abs=1e-6)
    assert [each.token_id for each in output.prompt_logprobs[1:] if each is not None] == QUESTION[1:]


def test_a_sessions_next_prompt_is_told_from_its_first_token_and_its_pending_ones_are_not() -> None:
    first = answer(new_core(), Sequence("first", QUESTION, TOLD))
    more = prompt("and the cat?")[1:]
    outputs = outputs_of(Sequence("second", more, state=first.state, prompt_logprobs=2))
    expected = model_logprobs([*QUESTION, *first.token_ids, tiny().tokenizer.special.end, *more])
    assert outputs[-1].prompt_logprobs is not None
    for index, (each, token_id) in enumerate(zip(outputs[-1].prompt_logprobs, more, strict=True)):
        assert_told(each, token_id, expected[index - len(more) - 1], 2)


def test_after_a_feed_that_left_nothing_pending_the_first_token_is_not_told() -> None:
    fed = answer(new_core(), Sequence("document", QUESTION)).state
    (output,) = outputs_of(Sequence("more", [20, 21], state=fed, prompt_logprobs=0))
    assert output.prompt_logprobs is not None
    unknown, each = output.prompt_logprobs
    assert unknown is None
    assert_told(each, 21, model_logprobs([*QUESTION, 20])[-1], 0)


@pytest.mark.parametrize("num_choices", [1, 3])
def test_choices_are_told_the_whole_prompt_that_they_share(num_choices: int) -> None:
    params = dataclasses.replace(TOLD, prompt_logprobs=2, repetition_penalty=1.2)
    (alone, *_) = outputs_of(Sequence("a", QUESTION, params))

    async def run(engine: Engine) -> list[tuple[int, SequenceOutput]]:
        with engine.places("default", num_choices):
            return [each async for each in engine.generate_choices([Sequence("a", QUESTION, params)], num_choices)]

    async def test() -> None:
        async with running() as engine:
            outputs = await run(engine)
        for choice in range(num_choices):
            own = [output for number, output in outputs if number == choice]
            assert len(told(own)) == params.max_tokens
            for output in own:
                assert output.prompt_logprobs is not None
                assert len(output.prompt_logprobs) == len(QUESTION)
                assert output.prompt_logprobs[0] is None
                for actual, expected in zip(output.prompt_logprobs[1:], (alone.prompt_logprobs or ())[1:], strict=True):
                    assert actual is not None
                    assert expected is not None
                    assert actual.token_id == expected.token_id
                    assert actual.logprob == pytest.approx(expected.logprob, abs=1e-9)
        first = [output for number, output in outputs if number == 0]
        assert [each.token_id for each in told(first)] == [
            each.token_id for each in told(outputs_of(Sequence("a", QUESTION, params)))
        ]

    in_loop(test)


def bytes_of(tokens: Iterable[TokenLogprob]) -> bytes:
    return b"".join(tiny().tokenizer.decode_bytes(each.token_id) for each in tokens)


def test_tokens_are_told_with_the_text_that_completes_them() -> None:
    """Halves of a character come alone, and stop strings hold text back."""
    first, second = (bytes([byte]) for byte in "é".encode())
    says = checkpoint_that_says({first, second})
    params = SamplingParams(temperature=3.0, seed=1, max_tokens=40, ignore_eos=True, stop=("é" * 6,), logprobs=0)
    outputs = outputs_of(Sequence("a", QUESTION, params), says)
    assert any(output.text == "" and output.token_ids for output in outputs)
    num_characters = 0
    for count, output in enumerate(outputs, start=1):
        shown = "".join(each.text for each in outputs[:count])
        tokens = told(outputs[:count])
        assert bytes_of(tokens).decode(errors="replace") == shown
        num_characters += output.text.count("é")
    assert num_characters > 3


@pytest.mark.parametrize("is_within_a_token", [False, True])
def test_tokens_that_a_stop_string_hides_are_not_told(is_within_a_token: bool) -> None:
    says = checkpoint_that_says(ascii_words())
    params = SamplingParams(seed=4, max_tokens=40, ignore_eos=True, logprobs=1)
    whole = told(outputs_of(Sequence("a", QUESTION, params), says))
    pieces = [tiny().tokenizer.decode([each.token_id]) for each in whole]
    index = next(
        i
        for i in range(5, 30)
        if len(pieces[i]) > 1 and "".join(pieces).index("".join(pieces[i : i + 2])) == len("".join(pieces[:i]))
    )
    stop = "".join(pieces[index : index + 2])[int(is_within_a_token) :]
    if "".join(pieces).index(stop) != len("".join(pieces[:index])) + int(is_within_a_token):
        raise AssertionError("the stop string stands elsewhere too")
    outputs = outputs_of(Sequence("a", QUESTION, dataclasses.replace(params, stop=(stop,))), says)
    assert told(outputs) == whole[: index + int(is_within_a_token)]
    assert [each for output in outputs for each in output.token_ids] == [each.token_id for each in whole[: index + 2]]


def test_a_stop_token_ends_the_answer_and_is_neither_shown_nor_told() -> None:
    outputs = outputs_of(Sequence("a", QUESTION, TOLD))
    whole = told(outputs)
    index = next(i for i in range(3, 14) if whole[i].token_id not in [each.token_id for each in whole[:i]])
    params = dataclasses.replace(TOLD, stop_token_ids=(whole[index].token_id, 5))
    stopped = outputs_of(Sequence("a", QUESTION, params))
    assert told(stopped) == whole[:index]
    assert stopped[-1].finish_reason == "stop"
    assert stopped[-1].num_generated_tokens == index + 1
    assert "".join(output.text for output in stopped) == bytes_of(whole[:index]).decode(errors="replace")
    fed = [*QUESTION, *(each.token_id for each in whole[:index])]
    assert stopped[-1].state is not None
    assert stopped[-1].state.tokens_digest == answer(new_core(), Sequence("fed", fed)).state.tokens_digest
    assert stopped[-1].state.pending_token_ids == (tiny().tokenizer.special.end,)
    later = dataclasses.replace(params, min_tokens=index + 1)
    assert told(outputs_of(Sequence("a", QUESTION, later)))[: index + 1] == whole[: index + 1]


def test_a_long_prompts_logits_are_made_a_few_at_a_time() -> None:
    vocab_size, width = 2**17, 4
    weight = torch.randn(vocab_size, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(40, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sizes: list[int] = []

    def head(some: Tensor) -> Tensor:
        sizes.append(some.shape[0] * vocab_size)
        return some @ weight.T

    token_ids = list(range(100, 130))
    told = logprobs_of(hidden, PromptTargets(3, token_ids, 1), head, vocab_size)
    assert max(sizes) <= 2**20
    assert sum(sizes) == 30 * vocab_size
    expected = (hidden[3:33] @ weight.T).log_softmax(1)
    for index, (each, token_id) in enumerate(zip(told, token_ids, strict=True)):
        assert_told(each, token_id, expected[index], 1)


@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("logit_bias", {"logit_bias": ((10**6, 1.0),)}),
        ("logit_bias", {"logit_bias": ((-1, 1.0),)}),
        ("stop_token_ids", {"stop_token_ids": (3, 10**6)}),
    ],
)
def test_ids_that_the_model_does_not_have_are_refused_by_the_name_of_their_field(
    param: str, values: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        new_core().add(Sequence("a", QUESTION, SamplingParams(**values)))
    assert refused.value.param == param


def test_more_numbers_about_a_prompt_than_are_kept_are_refused() -> None:
    num_tokens = MAX_NUM_LOGPROBS // 21
    core = new_core()
    core.check(Sequence("fits", [9] * num_tokens, SamplingParams(prompt_logprobs=20)))
    with pytest.raises(InvalidRequest) as refused:
        core.check(Sequence("long", [9] * (num_tokens + 1), SamplingParams(prompt_logprobs=20)))
    assert refused.value.param == "logprobs"


def test_more_numbers_about_all_prompts_and_answers_than_one_request_is_told_are_refused() -> None:
    params = SamplingParams(max_tokens=6, logprobs=0, prompt_logprobs=3)
    # Told again with every choice: 2 (4 * 10 + 6) numbers a prompt.
    prompt = Sequence("a", [9] * 10, params)
    num_prompts = MAX_NUM_LOGPROBS_TOGETHER // 92
    check_together([prompt] * num_prompts, params, 2)
    with pytest.raises(InvalidRequest) as refused:
        check_together([prompt] * (num_prompts + 1), params, 2)
    assert refused.value.param == "logprobs"
