"""The processes that train one model together: who is who, sums over all, and torch's DistributedDataParallel.

Promises: a process by itself needs no torch.distributed, and everything here then changes nothing; under torchrun each
process takes its own GPU (nccl) or shares the CPU (gloo). Leaves who reads which rows to the loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together. All start from the same seed and see different rows."""

    rank: int = 0
    count: int = 1
    device: torch.device | str = "cpu"

    def agree(self, wanted: bool) -> bool:
        """Whether any process wants it; the same answer in all of them."""
        return bool(self.sum(torch.tensor(int(wanted), device=self.device)))

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, the same tensor in all of them; takes what is handed over."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def joined(self, module: nn.Module) -> nn.Module:
        """The module, such that a backward leaves in each process the mean of all processes' gradients.

        A parameter that a configuration does not use keeps no gradient, as in a process by itself.
        """
        if self.count == 1:
            return module
        # NOTE: without find_unused_parameters the buckets are laid out anew after the first backward, in the order in
        # which gradients came. Three processes and more add up in an order that depends on the place in a bucket, so
        # that the first step after a resume would differ in the last bits from the one of a run that went on.
        return DistributedDataParallel(module, find_unused_parameters=True)

    def apart(self, module: nn.Module) -> AbstractContextManager[None]:
        """Forward and backward in here add to this process's gradients alone, until the first backward outside."""
        if isinstance(module, DistributedDataParallel):
            context: AbstractContextManager[None] = module.no_sync()
            return context
        return nullcontext()


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone, on its device; takes leave of the others at the end.

    `cuda` without an index is the GPU of this process's LOCAL_RANK.
    """
    if device == torch.device("cuda"):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, device)
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(torch.distributed.get_rank(), count, device)
    finally:
        torch.distributed.destroy_process_group()
