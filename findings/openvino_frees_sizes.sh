#!/bin/bash
# OpenVINO 2026.4.1 (with torch 2.13.0, CPU): `convert_model` of a program of torch.export whose input has only fixed
# sizes, (1, 3, 64, 64), gives a model whose input is [?,3,?,?]. An image of another size and as many patches, 32 x 128,
# which the program itself refuses ("Guard failed: x.size()[2] == 64"), is then taken without an error, and its patches
# are put into the rows of a 64 x 64 image. Given again as `input=`, or to the model's `reshape`, the sizes are kept and
# such an image is refused. Output seen:
#   the program refuses 32 x 128
#   converted: [?,3,?,?], takes 32 x 128 and gives (1, 8, 4, 4)
#   with input=: [1,3,64,64], refuses 32 x 128
#   after reshape: [1,3,64,64], refuses 32 x 128
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip install --quiet --disable-pip-version-check"
$pip torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu || $pip torch==2.13.0
$pip openvino==2026.4.1 numpy==2.4.6 packaging==26.4
"$folder/venv/bin/python" - <<'PYTHON'
import openvino
import torch


class Patches(torch.nn.Module):
    """Features of patches of 16 x 16 pixels, as a map of 4 x 4."""

    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 8, kernel_size=16, stride=16)

    def forward(self, x):
        return self.patches(x).flatten(2).unflatten(2, (4, 4))


program = torch.export.export(Patches().eval(), (torch.randn(1, 3, 64, 64),))
wrong = torch.randn(1, 3, 32, 128)
try:
    program.module()(wrong)
except AssertionError:
    print("the program refuses 32 x 128")
else:
    raise SystemExit("the exported program takes another size")


def takes(model):
    try:
        return tuple(openvino.compile_model(model, "CPU")(wrong.numpy())[0].shape)
    except RuntimeError:
        return None


model = openvino.convert_model(program)
free, shape = str(model.inputs[0].partial_shape), takes(model)
print(f"converted: {free}, takes 32 x 128 and gives {shape}")
fixed = openvino.convert_model(program, input=[openvino.PartialShape([1, 3, 64, 64])])
print(f"with input=: {fixed.inputs[0].partial_shape}, {'takes' if takes(fixed) else 'refuses'} 32 x 128")
model.reshape([1, 3, 64, 64])
print(f"after reshape: {model.inputs[0].partial_shape}, {'takes' if takes(model) else 'refuses'} 32 x 128")
if not (free == "[?,3,?,?]" and shape == (1, 8, 4, 4) and takes(fixed) is None and takes(model) is None):
    raise SystemExit("the behaviour has changed")
PYTHON
