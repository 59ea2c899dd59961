"""ONNX: a fixed artefact is one file, weights and metadata inside."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import nn


FILE = "model.onnx"
OPTIONS = {}
# Protocol buffers end at 2 GiB: larger weights lie in a second file.
_MAX_BYTES = 2**31 - 2**24


def prepare(module: nn.Module):
    """Nothing is to be changed."""


def finish(program: onnx_ir.Model, example: Mapping[str, torch.Tensor], dynamic_shapes: Mapping[str, Any]):
    """Adds biases of normalisations over groups by subtracting their negatives: OpenCV 5 makes one layer of these
    nodes otherwise, and then refuses its shapes."""
    graph = program.graph
    for node in graph:
        scaled, bias = node.inputs if node.op_type == "Add" else (None, None)
        if _is_made_by(scaled, "Mul", "Reshape", "InstanceNormalization") and bias.name in graph.initializers:
            name = f"{bias.name}.negative"
            if name not in graph.initializers:
                tensor = onnx_ir.tensor(-bias.const_value.numpy(), name=name)
                graph.register_initializer(
                    onnx_ir.Value(name=name, const_value=tensor, shape=bias.shape, type=bias.type)
                )
            node.op_type = "Sub"
            node.replace_input_with(1, graph.initializers[name])
            if not bias.uses():
                del graph.initializers[bias.name]


def _is_made_by(value: onnx_ir.Value | None, *op_types: str) -> bool:
    """Whether a value comes from these nodes, the last one first, each the first input of the one before."""
    for op_type in op_types:
        node = None if value is None else value.producer()
        if node is None or node.op_type != op_type:
            return False
        value = node.inputs[0]
    return True


def save(component: Any, path: Path, metadata: Mapping[str, str]):
    """Writes a graph with its metadata, whose values are JSON."""
    model = component.program
    model.metadata_props.update(metadata)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if size > _MAX_BYTES else None)
