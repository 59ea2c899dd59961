"""Finds where the host would wait for an accelerator, on any device."""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


READS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu)
MASK_TYPES = (torch.bool, torch.uint8)


class _Reads(TorchFunctionMode):
    """Methods that copy to the host, which on the CPU call no operator."""

    def __init__(self, waits: list[str]):
        self.waits = waits

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in READS:
            self.waits.append(_caller(function.__name__))
        return function(*args, **(kwargs or {}))


class HostWaits(TorchDispatchMode):
    """
    Records, while it is entered, every operator whose result the host needs: numbers that are read, shapes that depend
    on values, comparisons of tensors, masks as indices and copies between devices. Lines that ask first whether a
    tensor is on the host (`is_here`) are left out.

    Attributes:
        waits (`list[str]`): One line for each: the operator and the line of code that called it.
    """

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self._reads = _Reads(self.waits)

    def __enter__(self) -> "HostWaits":
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any):
        super().__exit__(*error)
        self._reads.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if _waits(function, args, kwargs):
            caller = _caller(function.name())
            if "if is_here and" not in caller:
                self.waits.append(caller)
        return function(*args, **kwargs)


def _waits(function: Any, args: tuple, kwargs: dict) -> bool:
    name = function.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_"):
        return any(index is not None and index.dtype in MASK_TYPES for index in args[1])
    if name == "_to_copy":
        return kwargs.get("device") not in (None, args[0].device)
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return name in ("equal", "is_nonzero") or any(tag in function.tags for tag in tags)


def _caller(operator: str) -> str:
    frames = [frame for frame in traceback.extract_stack() if "catseg_hf" in frame.filename.split("/")[-2:]]
    return f"{operator}: {frames[-1].line if frames else 'called by no code of the package'}"
