from collections.abc import Iterator

import pytest
import torch

from atlas_model.convolution import convolve
from engine.device.numerics import set_float32_products

_MATRICES, _CONVOLUTIONS = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def setting() -> Iterator[None]:
    """Put back after the test what the process had."""
    before = _MATRICES.fp32_precision, _CONVOLUTIONS.fp32_precision
    yield
    _MATRICES.fp32_precision, _CONVOLUTIONS.fp32_precision = before


@pytest.mark.parametrize(("allow_tf32", "expected"), [(False, "ieee"), (True, "tf32")])
def test_a_cuda_engine_multiplies_as_it_is_told(allow_tf32: bool, expected: str) -> None:
    set_float32_products(torch.device("cuda"), allow_tf32=allow_tf32)
    assert _MATRICES.fp32_precision == expected
    assert _CONVOLUTIONS.fp32_precision == expected


def test_an_engine_on_the_cpu_leaves_the_setting_alone() -> None:
    before = _MATRICES.fp32_precision, _CONVOLUTIONS.fp32_precision
    set_float32_products(torch.device("cpu"), allow_tf32=True)
    assert (_MATRICES.fp32_precision, _CONVOLUTIONS.fp32_precision) == before


@pytest.mark.gpu
@pytest.mark.parametrize("allow_tf32", [False, True])
def test_products_are_rounded_if_and_only_if_it_is_allowed(allow_tf32: bool) -> None:
    matrices = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    set_float32_products(torch.device("cuda"), allow_tf32=allow_tf32)
    on_device = (matrices[0].cuda() @ matrices[1].cuda()).cpu().double()
    exact = matrices[0].double() @ matrices[1].double()
    difference = float((on_device - exact).norm() / exact.norm())
    assert (difference > 1e-5) == allow_tf32


@pytest.mark.gpu
def test_a_convolution_is_not_rounded_unless_it_is_allowed() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, before = torch.randn(2, 300, 64, generator=generator), torch.randn(2, 3, 64, generator=generator)
    weight = torch.randn(4, 64, generator=generator)
    set_float32_products(torch.device("cuda"), allow_tf32=False)
    on_device, _ = convolve(tokens.cuda(), before.cuda(), weight.cuda(), None)
    exact, _ = convolve(tokens.double(), before.double(), weight.double(), None)
    assert float((on_device.cpu().double() - exact).norm() / exact.norm()) < 1e-5
