#!/bin/bash
# onnxscript 0.7.2 (with onnx-ir 1.1.0, torch 2.13.0): torch.onnx.export(dynamo=True) of a module that has a buffer
# called `mean`, and takes the mean of a constant elsewhere, stops in the optimizer: the value that it folds the second
# into is named after its node, `mean` as well, and "Initializer 'mean' is already registered". The same module is
# exported once its buffer has another name. Output seen:
#   mean: Initializer 'mean' is already registered
#   image_mean: exported
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip install --quiet --disable-pip-version-check"
$pip torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu || $pip torch==2.13.0
$pip onnxscript==0.7.2 onnx==1.23.2 onnx-ir==1.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import warnings

import torch


class Normalised(torch.nn.Module):
    """Pixels less a mean, times the mean of some constants."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.register_buffer(name, torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1))
        self.register_buffer("words", torch.arange(6.0).view(2, 3))

    def forward(self, image):
        return (image - getattr(self, self.name)) * self.words.mean(dim=0).view(3, 1, 1)


def reason(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).split(",")[0]


logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
found = {}
for name in ("mean", "image_mean"):
    try:
        torch.onnx.export(Normalised(name).eval(), (torch.rand(1, 3, 4, 4),), dynamo=True, verbose=False)
        found[name] = "exported"
    except Exception as error:
        found[name] = reason(error)[:44]
    print(f"{name}: {found[name]}")
if found != {"mean": "Initializer 'mean' is already registered", "image_mean": "exported"}:
    raise SystemExit("the behaviour has changed")
PYTHON
