"""Segmentations refined with masks: by hand, in the pipeline, and what they gain with true masks."""

import weakref
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import label as connected_components
from transformers import pipeline

from catseg_hf import EMBEDDED_MODEL, refine_with_masks, refinement
from catseg_hf.errors import UserError
from catseg_hf.refinement import refine_segmentation
from catseg_training.world.evaluation import mean_ious, read_scenes
from catseg_training.world.folders import NO_CLASS
from catseg_training.world.words import classes
from conftest import FIXTURES


SCENES = FIXTURES / "emoji_world"
WORDS = ["cat", "grass", "water"]

PROBABILITIES = torch.tensor(
    [
        [[0.6, 0.6, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1]],
        [[0.2, 0.2, 0.5, 0.5], [0.2, 0.9, 0.5, 0.5]],
        [[0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.6]],
    ]
)
OWN = [[0, 0, 1, 1], [0, 1, 1, 2]]
LEFT, ALL = [[1, 1, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]]  # class 0 with 0.5, class 1 with 0.4375
PIXEL, NOTHING = [[0, 0, 0, 0], [0, 1, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]  # class 1 with 0.9
CORNER = [[0, 0, 0, 0], [0, 0, 1, 1]]  # class 1 with 0.5, class 2 with 0.4
LEFT_WITH_HOLE = [[1, 1, 0, 0], [1, 0, 0, 0]]


def segment_anything(masks: Iterable[np.ndarray]) -> list[dict]:
    """Masks as segment-anything's `SamAutomaticMaskGenerator` returns them."""
    return [
        {
            "segmentation": mask,
            "area": int(mask.sum()),
            "bbox": [0, 0, mask.shape[1], mask.shape[0]],
            "predicted_iou": 0.9,
            "point_coords": [[0.5, 0.5]],
            "stability_score": 0.95,
            "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
        }
        for mask in masks
    ]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        pytest.param([LEFT], [[0, 0, 1, 1], [0, 0, 1, 2]], id="one"),
        pytest.param([ALL], [[1, 1, 1, 1], [1, 1, 1, 1]], id="all pixels"),
        pytest.param([LEFT, ALL], [[0, 0, 1, 1], [0, 0, 1, 1]], id="overlap"),
        pytest.param([LEFT, PIXEL], [[0, 0, 1, 1], [0, 1, 1, 2]], id="the surest inside another"),
        pytest.param([LEFT, CORNER, PIXEL, ALL], [[0, 0, 1, 1], [0, 1, 1, 1]], id="many"),
        pytest.param([LEFT_WITH_HOLE], OWN, id="hole"),
        pytest.param([NOTHING], OWN, id="empty"),
        pytest.param([NOTHING, LEFT, NOTHING], [[0, 0, 1, 1], [0, 0, 1, 2]], id="empty among others"),
    ],
)
def test_by_hand(masks, expected, order):
    labels = refine_with_masks(PROBABILITIES, torch.tensor(masks[::order], dtype=torch.bool))
    assert labels.dtype == torch.int64 and labels.tolist() == expected


@pytest.mark.parametrize("masks", [[], (), np.zeros((0, 2, 4), bool), torch.zeros(0, 9, 9, dtype=torch.bool)])
def test_no_masks(masks):
    assert refine_with_masks(PROBABILITIES, masks).tolist() == OWN


@pytest.mark.parametrize("size", [(1, 2), (4, 8), (3, 6), (6, 12), (5, 11)])
def test_masks_of_another_size(size):
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, :, : size[1] // 2] = True
    assert refine_with_masks(PROBABILITIES, mask).tolist() == [[0, 0, 1, 1], [0, 0, 1, 2]]


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((600, 800), id="same"),
        pytest.param((300, 400), id="half"),
        pytest.param((1200, 1600), id="twice"),
        pytest.param((384, 512), id="longest edge 512"),
        pytest.param((333, 444), id="rounded down"),
        pytest.param((334, 445), id="rounded up"),
        pytest.param((333, 445), id="rounded differently"),
        pytest.param((3, 4), id="tiny"),
    ],
)
def test_masks_of_a_resized_image(size):
    label_map = refine_with_masks(torch.zeros(1, 600, 800), torch.ones(1, *size, dtype=torch.bool))
    assert label_map.shape == (600, 800)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((1024, 1024), id="padded to a square"),
        pytest.param((256, 256), id="as Segment Anything predicts them"),
        pytest.param((400, 300), id="turned"),
        pytest.param((300, 397), id="a column cut off"),
        pytest.param((306, 400), id="a row of padding"),
        pytest.param((300, 500), id="wider"),
        pytest.param((1, 200), id="a line"),
    ],
)
def test_masks_that_are_not_of_the_image(size):
    masks = [np.ones((300, 400), bool), np.zeros(size, bool)]
    with pytest.raises(UserError, match=rf"Mask 1 is of {size[1]} x {size[0]} .* image of 400 x 300.*padding"):
        refine_with_masks(torch.zeros(1, 300, 400), masks)


def test_kinds_of_masks():
    expected = [[0, 0, 1, 1], [0, 0, 1, 1]]
    arrays = [np.array(mask, dtype=bool) for mask in (LEFT, ALL)]
    for masks in (arrays, np.stack(arrays), map(torch.tensor, arrays), [mask.T.copy().T for mask in arrays]):
        assert refine_with_masks(PROBABILITIES, masks).tolist() == expected
    assert refine_with_masks(PROBABILITIES, segment_anything(arrays)).tolist() == expected


def test_of_equals_the_first_wins():
    probabilities = torch.tensor([[[0.5, 0.0, 0.0]], [[0.5, 0.5, 0.0]], [[0.0, 0.0, 0.5]]])
    left, right = torch.tensor([[[True, False, False]], [[True, False, True]]]), torch.tensor([[[True, True, True]]])
    assert refine_with_masks(probabilities, left[:1]).tolist() == [[0, 1, 2]]
    # Classes 1 and 2 have the mean 1/3 and 1/6 under `right`, classes 0 and 2 have 1/4 under the second of `left`.
    assert refine_with_masks(probabilities, torch.cat([left[1:], right])).tolist() == [[1, 1, 1]]
    twins = torch.tensor([[[True, True, False]], [[False, True, True]]])
    probabilities = torch.tensor([[[0.5, 0.25, 0.0]], [[0.0, 0.25, 0.5]]])
    assert refine_with_masks(probabilities, twins).tolist() == [[0, 0, 1]]
    assert refine_with_masks(probabilities, twins.flip(0)).tolist() == [[0, 1, 1]]


def literal(probabilities: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes and probabilities, pixel by pixel."""
    certainties, labels = probabilities.double().max(dim=0)
    winners = [probabilities[:, mask].double().mean(dim=1).max(dim=0) if mask.any() else None for mask in masks]
    for y, x in np.ndindex(labels.shape):
        covering = [winner for winner, mask in zip(winners, masks, strict=True) if mask[y, x]]
        if covering:
            certainties[y, x], labels[y, x] = max(covering, key=lambda winner: winner.values)
    return labels, certainties


def random_masks(count: int, height: int, width: int) -> torch.Tensor:
    """Boxes with holes, overlapping, some empty."""
    generator = np.random.default_rng(0)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        top, left = generator.integers(height), generator.integers(width)
        mask[top : generator.integers(height + 1), left : generator.integers(width + 1)] = True
        mask &= torch.tensor(generator.random((height, width)) < 0.9)
    return masks


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_same_as_pixel_by_pixel(dtype):
    torch.manual_seed(0)
    probabilities, masks = torch.rand(5, 12, 17).to(dtype), random_masks(40, 12, 17)
    assert torch.equal(refine_with_masks(probabilities, masks), literal(probabilities, masks)[0])


@pytest.mark.parametrize("size", [(24, 35), (12, 35), (7, 9)])
def test_small_probabilities_are_as_good_as_resized_ones(size):
    torch.manual_seed(0)
    small, masks = torch.rand(5, 12, 17), random_masks(40, *size)
    resized = resize(small, size)
    probability, segmentation = resized.max(dim=0)
    before = segmentation.clone()
    labels, certainties = refine_segmentation(segmentation, probability, small, masks)
    expected, expected_certainties = literal(resized, masks)
    assert torch.equal(labels, expected) and torch.equal(segmentation, before)
    assert torch.allclose(certainties.double(), expected_certainties, atol=1e-6)


def test_few_masks_are_held_at_a_time(monkeypatch):
    monkeypatch.setattr(refinement, "_MAX_CHUNK_BYTES", 2**20)  # 6 maps of 200 x 200 floats
    references, most = [], 0

    def masks():
        nonlocal most
        for row in range(200):
            mask = torch.zeros(200, 200, dtype=torch.bool)
            mask[row] = True
            references.append(weakref.ref(mask))
            most = max(most, sum(reference() is not None for reference in references))
            yield mask

    probabilities = torch.zeros(2, 200, 200)
    probabilities[1, ::2, 1:] = 1
    labels = refine_with_masks(probabilities, masks())
    assert 1 < most < 15
    assert labels[:, 0].tolist() == [1, 0] * 100


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (torch.rand(4, 4), r"shape \(4, 4\)"),
        (torch.rand(0, 4, 4), r"shape \(0, 4, 4\)"),
        (torch.ones(2, 4, 4, dtype=torch.int64), "int64"),
        (torch.full((2, 4, 4), -3.0), "between -3.0 and -3.0"),
        (torch.full((2, 4, 4), torch.nan), "between nan"),
        (np.ones((2, 4, 4)), "ndarray"),
    ],
)
def test_bad_probabilities(probabilities, message):
    with pytest.raises(UserError, match=f"{message}.*floats from 0 to 1 of shape"):
        refine_with_masks(probabilities, [])


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.rand(3, 2, 4), r"Mask 0 has shape \(2, 4\) and dtype float32.*`mask > 0`"),
        (torch.ones(2, 4, dtype=torch.bool), r"Mask 0 has shape \(4,\) and dtype bool.*masks\[None\]"),
        ([np.ones((2, 4), bool), np.ones((2, 4), np.uint8)], "Mask 1 has .* uint8"),
        (np.ones((1, 0, 4), bool), r"Mask 0 has shape \(0, 4\)"),
        ({"segments": []}, "of type dict.* its 'masks'"),
        ([{"masks": [], "scores": []}], "Mask 0 is a dictionary with 'masks', 'scores', but its 'segmentation'"),
        ([{"segmentation": {"size": [2, 4], "counts": "04"}}], 'Mask 0 is .*output_mode="binary_mask"'),
        ([{"segmentation": np.ones((2, 4))}], "Mask 0 has shape .* float64"),
        (None, "of type NoneType"),
    ],
)
def test_bad_masks(masks, message):
    with pytest.raises(UserError, match=message):
        refine_with_masks(PROBABILITIES, masks)


@pytest.fixture(scope="module")
def segmenter():
    return pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL, device="cpu")


@pytest.fixture(scope="module")
def image():
    """Not square, and of another size than the model's."""
    return Image.open(sorted((SCENES / "images" / "gate").iterdir())[0]).crop((0, 0, 128, 90)).resize((200, 140))


def quarters(image: Image.Image) -> np.ndarray:
    """Four masks of an image, and one over its middle."""
    masks = np.zeros((5, image.height, image.width), dtype=bool)
    y, x = image.height // 2, image.width // 2
    for mask, rows in zip(masks, (slice(y), slice(y), slice(y, None), slice(y, None)), strict=False):
        mask[rows] = True
    masks[0:4:2, :, x:] = False
    masks[1:4:2, :, :x] = False
    masks[4, y // 2 : y + y // 2, x // 2 : x + x // 2] = True
    return masks


def resize(probabilities: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(probabilities[None], size=size, mode="bilinear")[0]


def test_pipeline(segmenter, image):
    seen = []

    def generator(given):
        seen.append(given)
        return {"masks": list(quarters(given)), "scores": [0.0] * 5}

    result = segmenter(image, WORDS, mask_generator=generator, return_segmentation_map=True, return_probabilities=True)
    (given,) = seen
    assert given.mode == "RGB" and np.array_equal(np.array(given), np.array(image))
    unrefined = segmenter(image, WORDS, return_probabilities=True)
    assert torch.equal(result["probabilities"], unrefined["probabilities"])
    probabilities = resize(result["probabilities"], (image.height, image.width))
    expected, certainties = literal(probabilities, torch.tensor(quarters(image)))
    assert torch.equal(result["segmentation"], expected)
    assert not torch.equal(expected, probabilities.argmax(dim=0))
    for segment in result["segments"]:
        inside = expected == WORDS.index(segment["label"])
        assert np.array_equal(np.array(segment["mask"]) > 0, inside.numpy())
        assert segment["score"] == pytest.approx(certainties[inside].mean().item(), abs=1e-5)

    threshold = float(certainties.unique().median())
    result = segmenter(image, WORDS, mask_generator=quarters, threshold=threshold + 1e-4, return_segmentation_map=True)
    assert torch.equal(result["segmentation"] == -1, certainties < threshold + 1e-4)


def test_pipeline_takes_what_segment_anything_returns(segmenter, image):
    expected = segmenter(image, WORDS, mask_generator=quarters, return_segmentation_map=True)
    result = segmenter(
        image, WORDS, mask_generator=lambda image: segment_anything(quarters(image)), return_segmentation_map=True
    )
    assert torch.equal(result["segmentation"], expected["segmentation"])


def test_pipeline_refuses_masks_of_a_padded_image(segmenter, image):
    with pytest.raises(UserError, match="Mask 0 is of 200 x 200 .* image of 200 x 140"):
        segmenter(image, WORDS, mask_generator=lambda image: np.ones((1, 200, 200), dtype=bool))


def test_pipeline_without_masks_is_as_without_a_generator(segmenter, image):
    refined = segmenter(image, WORDS, mask_generator=lambda image: [])
    plain = segmenter(image, WORDS)
    assert [(segment["label"], segment["score"]) for segment in refined] == [
        (segment["label"], segment["score"]) for segment in plain
    ]


def test_generator_of_a_pipeline_and_batches(image):
    refining = pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL, device="cpu", mask_generator=quarters)
    images = [image, image.rotate(90, expand=True), image.resize((60, 60))]
    alone = [refining(image, WORDS, return_segmentation_map=True)["segmentation"] for image in images]
    together = refining(images, WORDS, return_segmentation_map=True, batch_size=2)
    for one, result in zip(alone, together, strict=True):
        assert (one == result["segmentation"]).float().mean() > 0.999
    array = np.asarray(image, dtype=np.float32)
    assert torch.equal(refining(array, WORDS, return_segmentation_map=True)["segmentation"], alone[0])


def test_bad_generators(segmenter, image):
    with pytest.raises(UserError, match="`mask_generator` is 'facebook/sam-vit-base'.*'mask-generation'"):
        segmenter(image, WORDS, mask_generator="facebook/sam-vit-base")
    with pytest.raises(UserError, match="Mask 0 has .* float64"):
        segmenter(image, WORDS, mask_generator=lambda image: np.random.rand(3, 9, 9))
    with pytest.raises(UserError, match="of type dict"):
        segmenter(image, WORDS, mask_generator=lambda image: {"mask": []})


def regions(label_map: np.ndarray) -> list[np.ndarray]:
    """The connected regions of every class, as masks without classes."""
    masks = []
    for index in np.unique(label_map[label_map != NO_CLASS]):
        numbered, count = connected_components(label_map == index)
        masks += [numbered == number for number in range(1, count + 1)]
    return masks


@pytest.mark.parametrize("num_scenes", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_true_masks_raise_the_mean_iou(segmenter, num_scenes):
    images, label_maps = read_scenes(SCENES, "gate", num_scenes)
    plain, refined = [], []
    for image, label_map in zip(images, label_maps, strict=True):
        masks = regions(label_map)
        for predictions, options in (plain, {}), (refined, {"mask_generator": lambda image, masks=masks: masks}):
            result = segmenter(Image.fromarray(image), classes(), return_segmentation_map=True, **options)
            predictions.append(result["segmentation"].numpy())
    before, after = (mean_ious(np.stack(predictions), label_maps) for predictions in (plain, refined))
    for words in ("seen", "unseen"):
        print(f"{words} words, {num_scenes} scenes: mIoU {before[words]:.1%}, with masks {after[words]:.1%}")
        assert after[words] > before[words] + 0.1
