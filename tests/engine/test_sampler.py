import math
from typing import Any

import torch
from torch import Tensor

from engine.sampling.sampler import Draw, Sampler, splitmix64, uniform
from engine.sampling.sampling_params import SamplingParams

END = 2
SILENT = (0, 1, 2)
VOCAB_SIZE = 12


def sampler() -> Sampler:
    """`END` is in the list of the silent, as it writes nothing, and can be sampled all the same."""
    return Sampler(VOCAB_SIZE, END, SILENT, torch.device("cpu"))


def logits(num_rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))


def draw(position: int = 0, seed: int = 7, can_end: bool = True, **params: Any) -> Draw:
    return Draw(SamplingParams(**params), seed, position, can_end)


def sample(rows: Tensor, draws: list[Draw]) -> list[int | None]:
    return sampler().sample(rows, draws).token_ids


def frequencies(row: Tensor, num_draws: int, **params: Any) -> list[float]:
    draws = [draw(position, **params) for position in range(num_draws)]
    token_ids = sample(row.expand(num_draws, -1), draws)
    return [token_ids.count(token_id) / num_draws for token_id in range(VOCAB_SIZE)]


def test_splitmix64_gives_the_published_outputs() -> None:
    # The first three outputs of the reference implementation for the seed 1234567.
    state, golden = 1234567, 0x9E3779B97F4A7C15
    outputs = [splitmix64((state + i * golden) % 2**64) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_are_uniform_over_positions_and_over_seeds() -> None:
    num_draws, num_bins = 20_000, 50
    for values in (
        [uniform(1, position) for position in range(num_draws)],
        [uniform(seed, 1000) for seed in range(num_draws)],
        [uniform(-seed, seed) for seed in range(num_draws)],
    ):
        counts = [0] * num_bins
        for value in values:
            counts[int(value * num_bins)] += 1
        expected = num_draws / num_bins
        chi_square = sum((count - expected) ** 2 / expected for count in counts)
        # 49 degrees of freedom: five standard deviations either way.
        assert abs(chi_square - (num_bins - 1)) < 5 * math.sqrt(2 * (num_bins - 1))


def test_neighbouring_draws_are_not_correlated() -> None:
    num_draws = 20_000
    values = torch.tensor([uniform(3, position) for position in range(num_draws)], dtype=torch.float64)
    other_seed = torch.tensor([uniform(4, position) for position in range(num_draws)], dtype=torch.float64)
    for a, b in ((values[:-1], values[1:]), (values, other_seed)):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(num_draws)


def test_tokens_come_with_the_frequencies_of_the_softmax() -> None:
    row, num_draws = logits(), 20_000
    allowed = [token_id for token_id in range(VOCAB_SIZE) if token_id not in (0, 1)]
    expected = torch.zeros(VOCAB_SIZE, dtype=torch.float64)
    expected[allowed] = (row[0, allowed].double() / 0.8).softmax(0)
    observed = frequencies(row, num_draws, temperature=0.8)
    chi_square = sum(
        num_draws * (observed[i] - float(expected[i])) ** 2 / float(expected[i]) for i in range(2, VOCAB_SIZE)
    )
    degrees = len(allowed) - 1
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees)
    assert observed[0] == observed[1] == 0


def test_top_k_and_top_p_keep_exactly_the_tokens_that_they_name() -> None:
    row = torch.full((1, VOCAB_SIZE), -100.0)
    row[0, 5:9] = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert {i for i, share in enumerate(frequencies(row, 500, top_k=3)) if share} == {5, 6, 7}
    assert {i for i, share in enumerate(frequencies(row, 500, top_p=0.79)) if share} == {5, 6}
    assert {i for i, share in enumerate(frequencies(row, 500, top_p=0.81)) if share} == {5, 6, 7}
    assert {i for i, share in enumerate(frequencies(row, 500, top_p=1e-9)) if share} == {5}
    # top_p is of what top_k left: 0.5 / 0.8 is 0.625 of two.
    assert {i for i, share in enumerate(frequencies(row, 500, top_k=2, top_p=0.6)) if share} == {5}
    observed = frequencies(row, 20_000, top_k=2)
    assert abs(observed[5] - 0.625) < 5 * math.sqrt(0.625 * 0.375 / 20_000)


def test_a_row_draws_the_same_token_alone_and_among_any_neighbours() -> None:
    rows = logits(8)
    draws = [
        draw(position=i, seed=i % 3, temperature=(0.0, 0.7, 1.5)[i % 3], top_p=(1.0, 0.8)[i % 2]) for i in range(8)
    ]
    together = sample(rows, draws)
    assert together == [sample(rows[i : i + 1], [draws[i]])[0] for i in range(8)]
    backwards = sample(rows.flip(0), draws[::-1])
    assert together == backwards[::-1]


def test_seed_and_position_both_decide() -> None:
    row = torch.zeros(64, VOCAB_SIZE)
    by_position = sample(row, [draw(position=i) for i in range(64)])
    by_seed = sample(row, [draw(seed=i) for i in range(64)])
    assert len(set(by_position)) > 5
    assert len(set(by_seed)) > 5
    assert by_position == sample(row, [draw(position=i) for i in range(64)])


def test_greedy_takes_the_most_likely_token_that_may_be_said() -> None:
    row = logits()
    row[0, 0], row[0, END], row[0, 5] = 50.0, 40.0, 30.0
    assert sample(row, [draw(temperature=0)]) == [END]
    assert sample(row, [draw(temperature=0, can_end=False)]) == [5]


def test_a_temperature_near_nothing_is_greedy_and_not_a_number_all_the_same() -> None:
    row = logits()
    row[0, 5] = 30.0
    assert sample(row, [draw(temperature=1e-300)]) == [5]


def test_a_row_that_is_not_finite_gives_none_and_leaves_its_neighbours_alone() -> None:
    rows = logits(3)
    expected = sample(rows, [draw()] * 3)
    rows[1, 4] = math.nan
    assert sample(rows, [draw()] * 3) == [expected[0], None, expected[2]]
    rows[1, 4] = math.inf
    assert sample(rows, [draw(temperature=0)] * 3)[1] is None


def test_sampling_leaves_the_logits_as_they_were() -> None:
    rows = logits(2).double()
    before = rows.clone()
    sample(rows, [draw(), draw(can_end=False)])
    assert torch.equal(rows, before)
