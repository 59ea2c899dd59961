"""How many CPUs this process gets, which is less than the machine has in many containers, and torch's threads."""

import os
import sys

import torch
from loky import cpu_count

from .processes import speaks_for_all


def available_cpus() -> int:
    """How many CPUs this process may use at a time, at least 1: those of its affinity, or fewer if the quota of its
    control group (`docker run --cpus`, a limit of Kubernetes) is smaller."""
    return cpu_count()


def limit_threads():
    """
    Has torch take no more threads than there are CPUs for this process, and says so if it would. By itself it takes
    one for every core, and under a quota they then wait for each other. `OMP_NUM_THREADS` is left alone.
    """
    num_cpus = available_cpus()
    if "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() <= num_cpus:
        return
    torch.set_num_threads(num_cpus)
    if speaks_for_all():
        print(
            f"{num_cpus} thread{'s' * (num_cpus != 1)}: the CPU quota or affinity of this process "
            "(OMP_NUM_THREADS gives another number).",
            file=sys.stderr,
        )
