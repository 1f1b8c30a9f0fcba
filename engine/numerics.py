"""How exactly a CUDA device multiplies float32 matrices: said, and not left to what torch happens to default to.

States, memories and momenta are float32 in any case, and so are sums. TF32 rounds the operands of a product to 10
bits of mantissa (float32 has 23, bfloat16 7) for several times the rate. It moves the demo's states by 5e-4 of their
size, so it is asked for and never assumed. A CPU knows no TF32, and float64 models are not touched.
"""

import torch


def set_float32_products(device: torch.device, *, allow_tf32: bool) -> None:
    """Sets it for this process: torch has one such setting. On other devices than CUDA's it does nothing."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32" if allow_tf32 else "ieee"
