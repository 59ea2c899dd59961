"""OpenVINO: a fixed artefact is an XML file with its metadata, and its weights beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import nn


FILE = "model.xml"
OPTIONS = {}
METADATA = "catseg"
"""Where the metadata are: `openvino.Core().read_model(path).get_rt_info([METADATA, name]).value`."""


def prepare(module: nn.Module):
    """Nothing is to be changed."""


def finish(program: openvino.Model, example: Mapping[str, torch.Tensor], dynamic_shapes: Mapping[str, Any]):
    """Gives the sizes again: the converter leaves all of them free, and images of others would give torn maps."""
    program.reshape(
        {
            name: [-1 if axis in dynamic_shapes[name] else size for axis, size in enumerate(tensor.shape)]
            for name, tensor in example.items()
        }
    )


def save(component: Any, path: Path, metadata: Mapping[str, str]):
    """Writes a graph with its metadata, whose values are JSON."""
    for name, value in metadata.items():
        component.program.set_rt_info(value, [METADATA, name])
    openvino.save_model(component.program, path, compress_to_fp16=False)
