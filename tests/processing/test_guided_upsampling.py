"""Upsampling that follows the image: against the filter's definition, in parts, and in the processor."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from catseg_hf import CATSegImageProcessorPil, guided_upsampling_catseg
from catseg_hf.bands_catseg import join_bands
from catseg_hf.errors import UserError
from catseg_hf.guided_upsampling_catseg import (
    EPSILON,
    MARGIN,
    RADIUS,
    UPSAMPLINGS,
    as_guide,
    guided_bands,
    most_probable_guided_class,
)


GUIDED = {"upsampling": "guided"}


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """Patches of colours, and noise."""
    generator = np.random.default_rng(seed)
    patches = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.asarray(patches.resize((width, height), Image.Resampling.NEAREST)).astype(float)
    return Image.fromarray((pixels + generator.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))


def smooth_logits(num_classes: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(1, num_classes, 4, 5, generator=torch.Generator().manual_seed(seed))
    return 4 * F.interpolate(noise, (height, width), mode="bicubic")[0]


def literal_guided_filter(probabilities: np.ndarray, guide: np.ndarray) -> np.ndarray:
    """Window by window: probabilities (T, h, w) and an image (H, W, 3) in 0..1, to (T, H, W) with -inf where a class
    wins at no cell near one of the four around a pixel."""
    num_classes, height, width = probabilities.shape
    rows, columns = guide.shape[0] // height, guide.shape[1] // width
    colours = guide.reshape(height, rows, width, columns, 3).mean(axis=(1, 3))
    winner = probabilities.argmax(axis=0)

    def window(row, column):
        return (
            slice(max(0, row - RADIUS), row + RADIUS + 1),
            slice(max(0, column - RADIUS), column + RADIUS + 1),
        )

    fits, near = np.zeros((num_classes, height, width, 4)), np.zeros((num_classes, height, width), bool)
    for row in range(height):
        for column in range(width):
            places = window(row, column)
            inside = colours[places].reshape(-1, 3)
            centred = inside - inside.mean(axis=0)
            spread = centred.T @ centred / len(inside) + EPSILON * np.eye(3)
            for index in range(num_classes):
                values = probabilities[index][places].ravel()
                slope = np.linalg.solve(spread, centred.T @ (values - values.mean()) / len(inside))
                fits[index, row, column] = [*slope, values.mean() - slope @ inside.mean(axis=0)]
                near[index, row, column] = (winner[places] == index).any()
    means = np.zeros_like(fits)
    for row in range(height):
        for column in range(width):
            means[:, row, column] = fits[(slice(None), *window(row, column))].mean(axis=(1, 2))
    result = np.full((num_classes, *guide.shape[:2]), -np.inf)
    for y in range(guide.shape[0]):
        for x in range(guide.shape[1]):
            row, column = (
                min(max((place + 0.5) / size - 0.5, 0), side - 1)
                for place, size, side in ((y, rows, height), (x, columns, width))
            )
            top, left = int(row), int(column)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            down, across = row - top, column - left
            corners = [(top, left, (1 - down) * (1 - across)), (top, right, (1 - down) * across)]
            corners += [(bottom, left, down * (1 - across)), (bottom, right, down * across)]
            fit = sum(weight * means[:, i, j] for i, j, weight in corners)
            may_win = np.all([near[:, i, j] for i, j, weight in corners if weight > 0], axis=0)
            values = fit[:, :3] @ guide[y, x] + fit[:, 3]
            result[may_win, y, x] = values[may_win]
    return result


def test_definition(monkeypatch):
    """In blocks, and classes a few at a time, as in one piece."""
    monkeypatch.setattr(guided_upsampling_catseg, "_BLOCK_CELLS", 5)
    monkeypatch.setattr(guided_upsampling_catseg, "_BLOCK_CLASSES", 2)
    logits, image = smooth_logits(6, 14, 12), random_image(14 * 3, 12 * 4)
    expected = literal_guided_filter(logits.double().sigmoid().numpy(), np.asarray(image) / 255)
    segmentation, probability = most_probable_guided_class(logits, as_guide(image))
    best, second = np.sort(expected, axis=0)[:-3:-1]
    clear = best - second > 1e-3
    assert clear.mean() > 0.95 and len(segmentation.unique()) > 3
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(segmentation.numpy()[clear], expected.argmax(axis=0)[clear])
    np.testing.assert_allclose(probability, best.clip(0, 1), atol=1e-3)
    assert segmentation.dtype == torch.int64 and probability.dtype == torch.float32


def test_borders_follow_the_image():
    """The model is a cell off, and unsure; the image knows where the border is."""
    pixels = np.full((96, 96, 3), (200, 60, 40), np.uint8)
    pixels[:, 45:] = (40, 90, 210)
    probability = torch.linspace(0.9, 0.1, 24).roll(1).expand(24, 24)
    logits = torch.stack([probability, 1 - probability]).logit()
    segmentation, _ = most_probable_guided_class(logits, as_guide(pixels))
    expected = torch.zeros(96, 96, dtype=torch.int64)
    expected[:, 45:] = 1
    assert torch.equal(segmentation, expected)
    outputs, processor = SimpleNamespace(logits=logits[None]), CATSegImageProcessorPil()
    (bilinear,) = processor.post_process_semantic_segmentation(outputs, [(96, 96)])
    assert (bilinear != expected).float().mean() > 0.02


def test_without_borders_nothing_moves():
    """In an image of one colour, values are means over windows: a straight border stays."""
    probability = torch.linspace(0.9, 0.1, 24).expand(24, 24)
    logits = torch.stack([probability, 1 - probability]).logit()
    segmentation, _ = most_probable_guided_class(logits, as_guide(np.full((96, 72, 3), 77, np.uint8)))
    assert (segmentation[:, :36] == 0).all() and (segmentation[:, 36:] == 1).all()


@pytest.mark.parametrize("rows, columns", [((0, 40), (30, 60)), ((12, 37), (9, 41)), ((20, 60), (0, 33))])
def test_rectangles(rows, columns, monkeypatch):
    """A rectangle of cells alone, cut out of an image: all but its margin is as in the whole."""
    monkeypatch.setattr(guided_upsampling_catseg, "_BLOCK_CELLS", 8)
    size, scale = (60, 60), (3, 4)
    probabilities = smooth_logits(9, *size).sigmoid()
    guide = as_guide(random_image(size[0] * scale[0], size[1] * scale[1]))
    whole = join_bands(guided_bands(probabilities, guide), guide.shape[1:])
    cells = tuple(slice(*side) for side in (rows, columns))
    pixels = tuple(slice(side.start * by, side.stop * by) for side, by in zip(cells, scale, strict=True))
    crop = guide[(slice(None), *pixels)]
    part = join_bands(guided_bands(probabilities[(slice(None), *cells)], crop), crop.shape[1:])
    inner = tuple(
        slice(MARGIN * by if side.start else 0, (side.stop - side.start - MARGIN * (side.stop < total)) * by)
        for side, by, total in zip(cells, scale, size, strict=True)
    )
    of_whole, of_part = ([result[pixels][inner] for result in whole], [result[inner] for result in part])
    assert of_whole[0].numel() > 500 and len(of_whole[0].unique()) > 2
    assert torch.allclose(of_whole[1], of_part[1], atol=2e-4)
    assert (of_whole[0] == of_part[0]).float().mean() > 0.999
    if inner[1].start:  # the margin is needed
        at_cut = (slice(None), slice(0, scale[1]))
        assert not torch.allclose(whole[1][pixels][at_cut], part[1][at_cut], atol=2e-4)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (23, 41), (97, 131), (640, 480)])
@pytest.mark.parametrize("grid", [(24, 24), (1, 5), (200, 180)])
def test_sizes(size, grid):
    """Images smaller than the model's maps, and of every ratio to them; no pixel is left out."""
    logits = smooth_logits(3, *grid)
    segmentation, probability = most_probable_guided_class(logits, as_guide(random_image(*size)))
    assert segmentation.shape == probability.shape == size
    assert 0 <= segmentation.min() and segmentation.max() <= 2
    assert 0 <= probability.min() and probability.max() <= 1
    if min(*grid, *size) > 20:
        bilinear = F.interpolate(logits[None], size, mode="bilinear")[0].argmax(dim=0)
        assert (segmentation == bilinear).float().mean() > 0.7


def test_one_class_and_equal_classes():
    """Of equal classes the first wins, as without a guide."""
    guide = as_guide(random_image(40, 50))
    assert (most_probable_guided_class(smooth_logits(1, 8, 8), guide)[0] == 0).all()
    logits = smooth_logits(2, 8, 8)[[0, 1, 1, 0]]
    assert most_probable_guided_class(logits, guide)[0].unique().tolist() == [0, 1]


def test_memory_is_bounded(monkeypatch):
    """Hundreds of classes, most of which win nowhere: neither all of them nor all pixels are worked on at a time."""
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            result = function(*arguments, **kwargs or {})
            largest.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    monkeypatch.setattr(guided_upsampling_catseg, "_POOLED_VALUES", 2**18)
    logits = smooth_logits(847, 64, 64)
    logits[40:] -= 20
    guide = as_guide(random_image(600, 800))
    with Sizes():
        segmentation, _ = most_probable_guided_class(logits, guide)
    assert 10 < len(segmentation.unique()) <= 40
    # Values of 16 classes and 256 x 256 pixels, four for each, or of all pixels and one class.
    assert max(size for size in largest if size != logits.numel()) <= 4 * 16 * 256**2


def test_processor():
    processor = CATSegImageProcessorPil()
    images = [random_image(90, 70, seed) for seed in range(2)]
    outputs = SimpleNamespace(logits=torch.stack([smooth_logits(5, 24, 24, seed) for seed in range(2)]))
    sizes = [(90, 70)] * 2
    expected = [
        most_probable_guided_class(logits, as_guide(image))
        for logits, image in zip(outputs.logits, images, strict=True)
    ]
    plain = processor.post_process_semantic_segmentation(outputs, sizes)
    floats = [np.asarray(image).astype(np.float32) for image in images]
    for given in (images, [np.asarray(image) for image in images], floats):
        for target_sizes in (sizes, None, torch.tensor(sizes)):
            found = processor.post_process_semantic_segmentation(outputs, target_sizes, images=given, **GUIDED)
            for one, (segmentation, _), without in zip(found, expected, plain, strict=True):
                assert (one == segmentation).float().mean() > 0.999
                assert 0.01 < (one != without).float().mean() < 0.5
    guides = [as_guide(image) for image in images]
    pairs = processor.post_process_most_probable_class(outputs, sizes, guides)
    for pair, of_image in zip(pairs, expected, strict=True):
        assert torch.equal(pair[0], of_image[0]) and torch.equal(pair[1], of_image[1])


def test_scores_that_are_returned_stay_the_models():
    processor, image = CATSegImageProcessorPil(), random_image(60, 80)
    outputs = SimpleNamespace(logits=smooth_logits(5, 24, 24)[None])
    (plain,) = processor.post_process_semantic_segmentation(outputs, [(60, 80)], True)
    (guided,) = processor.post_process_semantic_segmentation(outputs, [(60, 80)], True, images=image, **GUIDED)
    assert torch.equal(plain.segmentation_scores, guided.segmentation_scores)
    assert torch.equal(guided.segmentation, most_probable_guided_class(outputs.logits[0], as_guide(image))[0])
    assert not torch.equal(plain.segmentation, guided.segmentation)


def test_images_change_nothing_without_it():
    processor, image = CATSegImageProcessorPil(), random_image(60, 80)
    outputs = SimpleNamespace(logits=smooth_logits(5, 24, 24)[None])
    (expected,) = processor.post_process_semantic_segmentation(outputs, [(60, 80)])
    for upsampling in ({}, {"upsampling": "bilinear"}):
        (found,) = processor.post_process_semantic_segmentation(outputs, [(60, 80)], images=image, **upsampling)
        assert torch.equal(found, expected)


def test_stored_values_of_another_range():
    """The guide is what the model saw."""
    image = random_image(60, 80)
    stored = np.asarray(image).astype(np.uint16) * 10
    outputs = SimpleNamespace(logits=smooth_logits(5, 24, 24)[None])
    (expected,) = CATSegImageProcessorPil().post_process_semantic_segmentation(outputs, images=image, **GUIDED)
    processor = CATSegImageProcessorPil(value_range=(0, 2550))
    (found,) = processor.post_process_semantic_segmentation(outputs, images=stored, **GUIDED)
    assert torch.equal(found, expected)
    processor = CATSegImageProcessorPil(do_rescale=False)
    scaled = np.asarray(image).astype(np.float32) / 255
    (found,) = processor.post_process_semantic_segmentation(outputs, images=scaled, **GUIDED)
    assert (found == expected).float().mean() > 0.999


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"upsampling": "cubic"}, "`upsampling` is 'cubic', but 'bilinear' or 'guided' is accepted: name one"),
        ({"upsampling": None}, "`upsampling` is None, but 'bilinear'"),
        (GUIDED, '0 images were given for 1 in the logits, but `upsampling="guided"` follows'),
        (GUIDED | {"images": [random_image(9, 9)] * 2}, "2 images were given for 1 in the logits"),
        (
            GUIDED | {"images": random_image(60, 81)},
            "Image 0 has size (60, 81) (height, width), but its target size is (60, 80): guided upsampling follows",
        ),
        (GUIDED | {"images": "nowhere.png"}, "nowhere.png"),
    ],
)
@pytest.mark.parametrize("scores", [False, True])
def test_what_is_refused(arguments, message, scores):
    outputs = SimpleNamespace(logits=smooth_logits(5, 24, 24)[None])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        CATSegImageProcessorPil().post_process_semantic_segmentation(outputs, [(60, 80)], scores, **arguments)
    assert isinstance(error.value, UserError) or "nowhere" in message
    assert UPSAMPLINGS == ("bilinear", "guided")
