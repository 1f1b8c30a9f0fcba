import math
from typing import Any

import pytest

from engine.errors import InvalidRequest, InvalidUnicode
from engine.sampling.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("max_tokens", {"max_tokens": 0}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": math.inf}),
        ("temperature", {"temperature": math.nan}),
        ("top_p", {"top_p": 0.0}),
        ("top_p", {"top_p": 1.01}),
        ("top_p", {"top_p": math.nan}),
        ("top_k", {"top_k": 0}),
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
        max_tokens=1, temperature=0, top_p=1.0, top_k=1, seed=2**64 - 1, stop=("é" * 512,) * 16, min_tokens=1
    )
    assert params.is_greedy
    assert not SamplingParams(temperature=1e-9, seed=-(2**63)).is_greedy
