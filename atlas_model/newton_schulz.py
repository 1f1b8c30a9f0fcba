"""Newton-Schulz orthogonalisation: the step of the `muon` rule (Atlas, Eq 32; the iteration is Muon's)."""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_model.config import NewtonSchulzConfig


def newton_schulz(matrices: Tensor, config: NewtonSchulzConfig) -> Tensor:
    """Bring the singular values of each matrix close to 1, whatever the matrix's scale.

    matrices: [..., rows, columns]; the result has the same shape and dtype. X starts as S / (|S|_F + eps); each step
    is X <- P X, P = a I + b A + c A^2, with A = X X^T, on the side that is shorter. A zero matrix stays zero.
    Where one side is long, the steps are made on A alone, A <- P A P, and X is multiplied by their product once: in
    float32 and wider, for in bfloat16 an A that is rounded has negative eigenvalues, which each step multiplies by 12.
    """
    rows, columns = matrices.shape[-2:]
    stack = matrices.reshape(-1, rows, columns)
    x: Tensor = stack.mT if rows > columns else stack
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + config.eps)
    if x.dtype.itemsize >= 4 and uses_gram_form(config, rows, columns):
        x = _gram_form(x, config)
    else:
        for _ in range(config.num_steps):
            x = _step(x @ x.mT, config) @ x
    return (x.mT if rows > columns else x).reshape(matrices.shape)


def uses_gram_form(config: NewtonSchulzConfig, rows: int, columns: int) -> bool:
    """Whether the form that iterates on the small matrix alone has the fewer multiplications."""
    return newton_schulz_products(config, rows, columns) < _plain_products(config, rows, columns)


def newton_schulz_products(config: NewtonSchulzConfig, rows: int, columns: int) -> int:
    """Multiplications for one matrix."""
    short, long = sorted((rows, columns))
    gram_form = 2 * short * short * long + (4 * config.num_steps - 3) * short**3
    return min(gram_form, _plain_products(config, rows, columns))


def _plain_products(config: NewtonSchulzConfig, rows: int, columns: int) -> int:
    short, long = sorted((rows, columns))
    return config.num_steps * (2 * short * short * long + short**3)


def _step(gram: Tensor, config: NewtonSchulzConfig) -> Tensor:
    a, b, c = config.coefficients
    step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    step.diagonal(dim1=-2, dim2=-1).add_(a)
    return step


def _gram_form(x: Tensor, config: NewtonSchulzConfig) -> Tensor:
    gram = x @ x.mT
    product = _step(gram, config)
    step = product
    for _ in range(config.num_steps - 1):
        gram = step @ gram @ step
        step = _step(gram, config)
        product = step @ product
    return product @ x
