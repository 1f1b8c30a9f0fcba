"""How exactly a CUDA device multiplies in float32: said, and not left to torch, which by default rounds convolutions
and not matrices.

States, memories and momenta are float32 in any case, and so are sums. TF32 rounds the operands of a product to 10
bits of mantissa (float32 has 23, bfloat16 7) for several times the rate. It moves the demo's states by 5e-4 of their
size, so it is asked for and never assumed. A CPU knows no TF32, and float64 models are not touched.
"""

import torch


def set_float32_products(device: torch.device, *, allow_tf32: bool) -> None:
    """Sets it for this process: torch has one such setting for matrices and one for convolutions. On other devices than
    CUDA's it does nothing."""
    if device.type == "cuda":
        precision = "tf32" if allow_tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
