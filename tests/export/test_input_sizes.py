"""Every exported format refuses inputs of sizes that its graphs do not take."""

import pytest
import torch

from catseg_hf.export.formats import FORMATS
from conftest import converted_model


exporters = pytest.importorskip("transformers.exporters", reason="transformers has no exporters before 5.24")
graphs = pytest.importorskip("catseg_hf.export.graphs")

PACKAGES = {"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino",), "executorch": ("executorch",)}
BATCH_SIZE, NUM_CLASSES = 1, 5


def resize(tensor: torch.Tensor, *sizes: int) -> torch.Tensor:
    """A tensor of another shape, of values that the first one has."""
    return tensor.flatten()[torch.arange(torch.Size(sizes).numel()) % tensor.numel()].view(sizes)


# Of images, the sides in terms of the model's; among them of as many pixels, and of as many patches.
WRONG_IMAGES = {
    "a quarter as high, four times as wide": lambda side: (side // 4, 4 * side),
    "half as high, twice as wide": lambda side: (side // 2, 2 * side),
    "twice as high, half as wide": lambda side: (2 * side, side // 2),
    "wider": lambda side: (side, 4 * side),
    "larger": lambda side: (2 * side, 2 * side),
    "smaller": lambda side: (side // 2, side // 2),
    "a pixel wider": lambda side: (side, side + 1),
}
WRONG_INPUTS = {
    **{
        name: ("pixel_values", lambda x, sides=sides: resize(x, 1, 3, *sides(x.shape[-1])))
        for name, sides in WRONG_IMAGES.items()
    },
    "four channels": ("pixel_values", lambda x: resize(x, 1, 4, *x.shape[2:])),
    "grey": ("pixel_values", lambda x: x[:, :1]),
    "text features of another model": ("text_embeds", lambda x: x[..., : x.shape[-1] // 2]),
    "text features of two prompts": ("text_embeds", lambda x: x.repeat(1, 2, 1)),
    "two prompts": ("input_ids", lambda x: x.repeat(1, 2, 1)),
    "a prompt too long": ("input_ids", lambda x: torch.cat([x[..., :-1], x[..., -2:]], dim=-1)),
}


@pytest.fixture(scope="module")
def model(original_state_dict):
    return converted_model(original_state_dict).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, model, tmp_path_factory):
    """The graphs of a format, written and read again."""
    for package in PACKAGES.get(request.param, ()):
        pytest.importorskip(package, reason=f"{package} is not installed")
    folder = tmp_path_factory.mktemp("exported")
    sizes = (BATCH_SIZE, NUM_CLASSES) if request.param == "executorch" else None
    graphs.export_graphs(model, graphs.GraphExporter(request.param), sizes).save_pretrained(folder)
    return exporters.ExportedModel.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def good_inputs(exported, model):
    """Inputs that the graphs take."""
    inputs = graphs.random_inputs(model, BATCH_SIZE, NUM_CLASSES)
    for graph, (_, names) in graphs.graph_modules(model).items():
        exported.runners[graph](**{name: inputs[name] for name in names})
    return inputs


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), WRONG_INPUTS.values(), ids=WRONG_INPUTS.keys())
def test_other_sizes_are_refused(name, change, exported, good_inputs, model):
    (graph, names), *_ = ((graph, names) for graph, (_, names) in graphs.graph_modules(model).items() if name in names)
    inputs = {other: good_inputs[other] for other in names}
    with pytest.raises((AssertionError, RuntimeError)):
        exported.runners[graph](**{**inputs, name: change(inputs[name])})
