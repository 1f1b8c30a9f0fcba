"""A draw from all of a vocabulary: nothing is filtered, so nothing need be ordered but the tokens' ids."""

import torch
from torch import Tensor
from torch.nn.functional import pad

# Tokens are weighed together so many at a time, and one by one only where the draw lies.
_NUM_TOGETHER = 64


def draw_unfiltered(scores: Tensor, temperature: Tensor, uniforms: Tensor) -> Tensor:
    """The first token, int64 [B], that has with those of lower ids more than the share `uniforms` of all weight.

    scores: [B, V]. temperature, uniforms: float64 [B, 1]. A row whose highest score is not finite gives any token.
    """
    weights = scores.double().sub_(scores.amax(dim=1, keepdim=True)).div_(temperature).exp_()
    num_missing = -weights.shape[1] % _NUM_TOGETHER
    if num_missing:
        weights = pad(weights, (0, num_missing))
    weights = weights.view(len(weights), -1, _NUM_TOGETHER)
    masses = weights.sum(dim=2)
    ends = masses.cumsum(dim=1)
    total = ends[:, -1:]
    # Rounding may leave the product at the total, which the last token completes.
    target = (uniforms * total).minimum(total.nextafter(torch.zeros_like(total)))
    group = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    start = ends.gather(1, group) - masses.gather(1, group)
    inside = weights.gather(1, group[:, :, None].expand(-1, -1, _NUM_TOGETHER))[:, 0].cumsum(dim=1)
    # And may leave the group's sum at what is sought in it.
    last = torch.searchsorted(inside, inside[:, -1:].contiguous())
    place = torch.searchsorted(inside, target - start, right=True).minimum(last).clamp_(max=_NUM_TOGETHER - 1)
    return (group * _NUM_TOGETHER + place)[:, 0]
