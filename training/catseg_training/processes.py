"""The processes that train or evaluate together, with what accelerate makes of them."""

import logging
import os
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from catseg_hf.errors import UserError
from catseg_hf.loading.segmenter import is_fast_on_cpu
from catseg_hf.utils.processes import TIMEOUT, check_addresses, tell_if_alone
from catseg_hf.utils.threads import limit_threads

from .heartbeat import watch_other_machines


def usable_precision(mixed_precision: str | None) -> str | None:
    """
    The mixed precision to train in here, for the one that was asked for or, without one, that the launcher was told.

    Raises:
        UserError: If it is "fp16" without a GPU.
    """
    wanted = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if torch.accelerator.is_available() or wanted == "no":
        return mixed_precision
    if wanted == "fp16":
        raise UserError("--mixed_precision fp16 needs a GPU, and there is none here: give bf16 or no.")
    return mixed_precision if is_fast_on_cpu(torch.bfloat16) else "no"


def build_accelerator(**options: Any) -> Accelerator:
    """
    An `Accelerator` for this process, under any launcher and on any device, and the main process's messages on screen,
    what there is to say of processes and threads among them.

    Args:
        options: Further arguments of `Accelerator`.
    """
    tell_if_alone()
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        check_addresses()
    limit_threads()
    accelerator = Accelerator(
        # Without being told, accelerate lets several processes on CPU run as if each were alone.
        cpu=on_cpu,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
        **options,
    )
    watch_other_machines()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("catseg_training").setLevel(logging.INFO)
    if not accelerator.is_main_process:
        transformers.utils.logging.disable_progress_bar()
    return accelerator
