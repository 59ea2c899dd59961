import multiprocessing
import os
import sys
import venv
from collections.abc import Iterator
from pathlib import Path


# Workers that share the cores would wait for each other's threads; their children inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from safetensors.torch import load_file
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from catseg_hf import CATSegForSemanticSegmentation, CATSegImageProcessorPil, CATSegProcessor
from catseg_hf.conversion.original_architecture import infer_config
from catseg_hf.conversion.state_dict_conversion import build_model, convert_state_dict
from catseg_testing.tokenizer import tiny_tokenizer


ROOT = Path(__file__).parent.parent
# How Python starts workers: in the quick tests by this system's default.
ALL_START_METHODS = [
    pytest.param(method, marks=() if method == multiprocessing.get_start_method() else pytest.mark.slow)
    for method in multiprocessing.get_all_start_methods()
    if (method, sys.platform) != ("fork", "darwin")  # where it is not safe
]
# A fork server hands over to workers what spawning does: one of the two is enough for most tests.
START_METHODS = [method for method in ALL_START_METHODS if method.values != ("spawn",) or not method.marks]
FIXTURES = ROOT / "tests" / "fixtures"


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels `(..., 3, H, W)` in 0..255 as the model takes them."""
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels.float() - mean) / std


@pytest.fixture(scope="session")
def original_state_dict() -> dict[str, torch.Tensor]:
    """The small checkpoint under the authors' names."""
    return torch.load(FIXTURES / "original.pth", weights_only=True)["model"]


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Stage by stage, what the authors' code computes with it for two images and five classes."""
    return load_file(FIXTURES / "forward.safetensors")


@pytest.fixture(scope="session")
def golden_inputs(golden) -> dict[str, torch.Tensor]:
    return {"pixel_values": normalise(golden["pixel_values_uint8"]), "input_ids": golden["input_ids"]}


def converted_model(original_state_dict: dict[str, torch.Tensor]) -> CATSegForSemanticSegmentation:
    config = infer_config(original_state_dict)
    converted = convert_state_dict(original_state_dict, config)
    return build_model({name: tensor.clone() for name, tensor in converted.items()}, config)


@pytest.fixture
def model(original_state_dict) -> CATSegForSemanticSegmentation:
    """The small checkpoint, converted, for a test to change as it likes."""
    return converted_model(original_state_dict)


@pytest.fixture(scope="session")
def processor() -> CATSegProcessor:
    return CATSegProcessor(CATSegImageProcessorPil(image_size=96), tiny_tokenizer())


@pytest.fixture(scope="session")
def small_checkpoint(original_state_dict, processor, tmp_path_factory) -> Path:
    """The small checkpoint as a folder, with a vocabulary and without the sliding window."""
    model = converted_model(original_state_dict)
    labels = ["cat", "sofa", "sky", "tree, oak"]
    model.set_vocabulary(labels, processor(text=labels).input_ids)
    model.config.sliding_window = False
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def python_without_package(tmp_path_factory) -> Path:
    """The Python of an environment that has everything but this package."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # Packages are found through a .pth file, the editable install of this one (a .pth file itself) is not.
    (site_packages / "others.pth").write_text(str(Path(torch.__file__).parent.parent))
    return folder / "bin" / "python"


@pytest.fixture
def model_with_vocabulary(model, processor) -> CATSegForSemanticSegmentation:
    labels = ["cat", "sofa", "sky", "tree, oak"]
    model.set_vocabulary(labels, processor(text=labels).input_ids)
    return model


@pytest.fixture(params=START_METHODS)
def start_method(request) -> Iterator[str]:
    """Workers are started in each way."""
    default = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(default, force=True)
