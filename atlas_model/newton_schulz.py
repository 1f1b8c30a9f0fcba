"""Newton-Schulz orthogonalisation: the step of the `muon` rule (Atlas, Eq 32; the iteration is Muon's)."""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_model.config import NewtonSchulzConfig


def newton_schulz(matrices: Tensor, config: NewtonSchulzConfig) -> Tensor:
    """Bring the singular values of each matrix close to 1, whatever the matrix's scale.

    matrices: [..., rows, columns]; the result has the same shape and dtype. X starts as S / (|S|_F + eps); each step
    is X <- a X + (b A + c A^2) X with A = X X^T, on the side that is shorter. A zero matrix stays zero.
    """
    rows, columns = matrices.shape[-2:]
    x: Tensor = matrices.mT if rows > columns else matrices
    a, b, c = config.coefficients
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + config.eps)
    for _ in range(config.num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if rows > columns else x
