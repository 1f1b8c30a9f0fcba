"""How many threads the model's products share when nobody says: the cores that this process may really use."""

import os
from pathlib import Path

import torch

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def default_num_threads(cpu_max: Path = _CPU_MAX) -> int:
    """Torch's own choice (physical cores, or OMP_NUM_THREADS), but no more than this process' affinity and its
    container's quota of processor time allow: threads that take turns on a core wait for each other at every product.

    cpu_max: the quota's file in a control group (v2), "QUOTA PERIOD" in microseconds; without one there is no quota.
    """
    allowed = [torch.get_num_threads()]
    if hasattr(os, "sched_getaffinity"):
        allowed.append(len(os.sched_getaffinity(0)))
    if cpu_max.is_file():
        quota, period = cpu_max.read_text().split()
        if quota != "max":
            allowed.append(int(quota) // int(period))
    return max(1, min(allowed))
