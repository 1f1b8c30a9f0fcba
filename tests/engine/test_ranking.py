"""The order of a vocabulary: numpy's integers say what torch's stable sort says."""

import torch

from engine.sampling.ranking import ranked


def test_scores_are_ranked_as_a_stable_sort_ranks_them() -> None:
    scores = torch.randn(9, 701, generator=torch.Generator().manual_seed(1))
    scores[3] = (scores[3] * 2).round()
    scores[4, ::7] = -torch.inf
    scores[5] = 0.0
    scores[5, ::3] = -0.0
    scores[6] *= 1e-42
    scores[7] *= 1e38
    expected_scores, expected_order = scores.sort(dim=1, descending=True, stable=True)
    values, order = ranked(scores)
    assert torch.equal(order, expected_order)
    assert torch.equal(values, expected_scores)


def test_scores_of_64_bits_are_ranked_by_all_of_them() -> None:
    scores = torch.tensor([[1.0, 1.0 + 1e-12, 1.0]], dtype=torch.float64)
    assert ranked(scores)[1].tolist() == [[1, 0, 2]]
