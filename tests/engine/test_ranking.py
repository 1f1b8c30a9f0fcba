"""Both rankings beside the definition, one token after the other: any scores, ties, temperatures and questions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.sampling.binned_ranking import BinnedRanking
from engine.sampling.ranking import Ranking, SortedRanking

VOCAB_SIZE = 50
KINDS: dict[str, Callable[[Tensor, Tensor], Ranking]] = {"binned": BinnedRanking, "sorted": SortedRanking}

# Spread out, of few values, all alike, and with some that are never drawn.
ROWS = st.one_of(
    st.lists(st.floats(-30, 30, width=32), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-20, 40.0]), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE),
    st.just([3.0] * VOCAB_SIZE),
    st.lists(st.sampled_from([-float("inf"), 0.5, 2.0]), min_size=VOCAB_SIZE - 1, max_size=VOCAB_SIZE - 1).map(
        lambda row: [0.25, *row]
    ),
)
TEMPERATURES = st.sampled_from([1e-300, 0.05, 0.7, 1.0, 10.0, 1e6])
BATCHES = st.lists(st.tuples(ROWS, TEMPERATURES), min_size=1, max_size=4)


def in_order(row: Tensor, temperature: float) -> tuple[list[int], list[float]]:
    """Token ids by rank, and what each and all heavier ones weigh together."""
    scores = row.double().tolist()
    order = sorted(range(VOCAB_SIZE), key=lambda token_id: -scores[token_id])
    weights = np.exp((np.array([scores[token_id] for token_id in order]) - max(scores)) / temperature)
    return order, np.cumsum(weights).tolist()


def batch(rows: list[tuple[list[float], float]]) -> tuple[Tensor, Tensor]:
    scores = torch.tensor([row for row, _ in rows])
    return scores, torch.tensor([[temperature] for _, temperature in rows], dtype=torch.float64)


def near(actual: Tensor, expected: list[float]) -> bool:
    return bool(torch.allclose(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0))


@pytest.mark.filterwarnings("ignore:(overflow|divide by zero):RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(rows=BATCHES, number=st.integers(1, VOCAB_SIZE), share=st.floats(2**-20, 1 - 2**-20))
def test_masses_and_tokens_are_those_of_the_definition(
    kind: str, rows: list[tuple[list[float], float]], number: int, share: float
) -> None:
    scores, temperature = batch(rows)
    ranking = KINDS[kind](scores, temperature)
    orders, cumulative = zip(
        *(in_order(row, float(each)) for row, each in zip(scores, temperature, strict=True)), strict=True
    )
    every = torch.arange(len(rows))
    assert near(ranking.total, [each[-1] for each in cumulative])
    assert near(ranking.mass_of_first(torch.full_like(every, number), every), [each[number - 1] for each in cumulative])

    target = ranking.total * share
    reaching = ranking.mass_reaching(target, every).tolist()
    for row, (order, token_id) in enumerate(zip(orders, ranking.token_beyond(target).tolist(), strict=True)):
        # A border may be met exactly: then rounding says on which side of it the target lies.
        first, last = (
            int(np.searchsorted(cumulative[row], float(target[row]) * (1 + sign * 1e-12))) for sign in (-1, 1)
        )
        assert order.index(token_id) in range(first, min(last, VOCAB_SIZE - 1) + 1)
        assert any(
            reaching[row] == pytest.approx(cumulative[row][place], rel=1e-12)
            for place in {first, min(last, VOCAB_SIZE - 1)}
        )
        assert reaching[row] >= float(target[row]) * (1 - 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_be_asked_about_in_any_selection(kind: str) -> None:
    scores = torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    ranking = KINDS[kind](scores, torch.full((5, 1), 0.8, dtype=torch.float64))
    some = torch.tensor([4, 1])
    numbers = torch.tensor([3, 7])
    cumulative = [in_order(scores[row], 0.8)[1] for row in (4, 1)]
    assert near(ranking.mass_of_first(numbers, some), [cumulative[0][2], cumulative[1][6]])
    least = torch.tensor([0.5, 0.0], dtype=torch.float64)
    num_heavier = int((((scores[4] - scores[4].max()).double() / 0.8).exp() >= 0.5).sum())
    assert ranking.num_heavier(least, some).tolist() == [num_heavier, VOCAB_SIZE]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_finite_breaks_no_other(kind: str) -> None:
    scores = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    expected = KINDS[kind](scores[1:2], torch.ones(1, 1, dtype=torch.float64))
    scores[0, 3], scores[2, 5] = torch.nan, torch.inf
    ranking = KINDS[kind](scores, torch.ones(3, 1, dtype=torch.float64))
    assert ranking.total[1] == expected.total[0]
    assert len(ranking.token_beyond(ranking.total * 0.5)) == 3
