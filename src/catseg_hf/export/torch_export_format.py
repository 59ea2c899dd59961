"""torch.export: a fixed artefact is a program with its metadata as an extra file, `metadata.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from transformers.exporters.utils import drop_runtime_asserts


FILE = "model.pt2"
OPTIONS = {}


def prepare(module: nn.Module):
    """Nothing is to be changed."""


def finish(program: ExportedProgram, example: Mapping[str, torch.Tensor], dynamic_shapes: Mapping[str, Any]):
    """Leaves out the checks of sizes inside the graph, of which one refuses a single class; other formats have
    none."""
    drop_runtime_asserts(program)


def save(component: Any, path: Path, metadata: Mapping[str, str]):
    """Writes a program with its metadata, whose values are JSON: `torch.export.load(path, extra_files=...)`."""
    values = {name: json.loads(value) for name, value in metadata.items()}
    torch.export.save(component.program, path, extra_files={"metadata.json": json.dumps(values)})
