"""An image of any kind in, a segmentation of its own size out."""

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import FIXTURES


LABELS = ["cat", "sofa", "sky", "tree, oak"]


def segment(model, processor, image: Image.Image) -> torch.Tensor:
    with torch.inference_mode():
        outputs = model(**processor(images=image))
    (segmentation,) = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])
    return segmentation


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16"])
def test_any_mode(model_with_vocabulary, processor, mode):
    image = Image.open(FIXTURES / "picture.png").resize((90, 60))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
    else:
        image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert image.mode == mode
    segmentation = segment(model_with_vocabulary, processor, image)
    assert segmentation.shape == (60, 90) and segmentation.dtype == torch.int64
    assert 0 <= segmentation.min() and segmentation.max() < len(LABELS)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 5000), (3000, 2)])
def test_any_size(model_with_vocabulary, processor, size):
    image = Image.open(FIXTURES / "picture.png").resize(size)
    assert segment(model_with_vocabulary, processor, image).shape == size[::-1]


@pytest.mark.slow
def test_huge_picture(model_with_vocabulary, processor):
    image = Image.open(FIXTURES / "picture.png").resize((8000, 6000))
    assert segment(model_with_vocabulary, processor, image).shape == (6000, 8000)


def test_batch_of_different_pictures(model_with_vocabulary, processor):
    picture = Image.open(FIXTURES / "picture.png")
    images = [picture, picture.resize((100, 300)).transpose(Image.Transpose.ROTATE_90)]
    with torch.inference_mode():
        outputs = model_with_vocabulary(**processor(images=images))
    sizes = [(image.height, image.width) for image in images]
    together = processor.post_process_semantic_segmentation(outputs, sizes)
    for image, segmentation in zip(images, together, strict=True):
        alone = segment(model_with_vocabulary, processor, image)
        assert (segmentation == alone).float().mean() > 0.999
