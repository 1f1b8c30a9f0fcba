import math
from typing import Any

import pytest

from engine.errors import InvalidRequest, InvalidUnicode
from engine.sampling.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("max_tokens", {"max_tokens": -1}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": math.inf}),
        ("temperature", {"temperature": math.nan}),
        ("top_p", {"top_p": 0.0}),
        ("top_p", {"top_p": 1.01}),
        ("top_p", {"top_p": math.nan}),
        ("top_k", {"top_k": 0}),
        ("min_p", {"min_p": -0.1}),
        ("min_p", {"min_p": 1.1}),
        ("min_p", {"min_p": math.nan}),
        ("presence_penalty", {"presence_penalty": 2.1}),
        ("presence_penalty", {"presence_penalty": math.nan}),
        ("frequency_penalty", {"frequency_penalty": -2.1}),
        ("repetition_penalty", {"repetition_penalty": 0.0}),
        ("repetition_penalty", {"repetition_penalty": math.inf}),
        ("logit_bias", {"logit_bias": ((3, 100.1),)}),
        ("logit_bias", {"logit_bias": ((3, math.nan),)}),
        ("logit_bias", {"logit_bias": ((3, 1.0), (3, 2.0))}),
        ("logit_bias", {"logit_bias": tuple((token_id, 1.0) for token_id in range(1025))}),
        ("stop_token_ids", {"stop_token_ids": tuple(range(65))}),
        ("logprobs", {"logprobs": -1}),
        ("logprobs", {"logprobs": 21}),
        ("logprobs", {"logprobs": 20, "max_tokens": 6242}),
        ("prompt_logprobs", {"prompt_logprobs": 21}),
        ("seed", {"seed": 2**64}),
        ("seed", {"seed": -(2**63) - 1}),
        ("min_tokens", {"min_tokens": -1}),
        ("min_tokens", {"min_tokens": 6, "max_tokens": 5}),
        ("stop", {"stop": ("",)}),
        ("stop", {"stop": ("x",) * 17}),
        ("stop", {"stop": ("é" * 513,)}),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(param: str, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**values)
    assert refused.value.param == param
    assert param in refused.value.message


def test_a_stop_string_with_a_lone_surrogate_is_invalid_unicode() -> None:
    with pytest.raises(InvalidUnicode):
        SamplingParams(stop=("\ud800",))


def test_the_borders_of_every_range_are_accepted() -> None:
    params = SamplingParams(
        max_tokens=1,
        temperature=0,
        top_p=1.0,
        top_k=1,
        min_p=1.0,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        repetition_penalty=0.01,
        logit_bias=tuple((token_id, -100.0) for token_id in range(1024)),
        seed=2**64 - 1,
        stop=("é" * 512,) * 16,
        stop_token_ids=tuple(range(64)),
        min_tokens=1,
        logprobs=20,
        prompt_logprobs=0,
    )
    assert params.is_greedy
    assert not SamplingParams(temperature=1e-9, seed=-(2**63)).is_greedy
