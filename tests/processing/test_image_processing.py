from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import is_torchvision_available

from catseg_hf import image_pixels_catseg, post_processing_catseg
from catseg_hf.image_processing_catseg import (
    CATSegImageProcessor,
    CATSegImageProcessorPil,
)
from catseg_hf.resizing_catseg import get_resized_size
from conftest import FIXTURES


PICTURE = FIXTURES / "picture.png"
MEAN = torch.tensor([122.7709383, 116.7460125, 104.09373615]).view(3, 1, 1)
STD = torch.tensor([68.5005327, 66.6321579, 70.3231630]).view(3, 1, 1)
# One grey level after normalisation.
GREY_LEVEL = float(1 / STD.min())

needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")


@pytest.fixture(params=["pil", pytest.param("torchvision", marks=needs_torchvision)])
def processor(request):
    return CATSegImageProcessorPil() if request.param == "pil" else CATSegImageProcessor()


@pytest.fixture
def picture():
    return Image.open(PICTURE)


def as_chw(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()


def squeeze_and_normalize(pixels, side):
    resized = F.interpolate(pixels[None], size=(side, side), mode="bilinear", align_corners=False, antialias=False)
    return (resized - MEAN) / STD


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def labels_of(processor, maps, images, **kwargs):
    return processor(images, segmentation_maps=maps, return_tensors="pt", **kwargs)["labels"]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 451), (640, 962)),  # the golden image
        ((480, 640), (640, 853)),
        ((1280, 1281), (640, 641)),  # 640.5 goes up
        ((1281, 1280), (641, 640)),
        ((6000, 8000), (640, 853)),
        ((100, 500), (512, 2560)),
        ((1, 10000), (1, 2560)),
        ((10000, 1), (2560, 1)),
        ((1, 1), (640, 640)),
    ],
)
def test_step_1_size(size, expected):
    assert get_resized_size(*size, shortest_edge=640, longest_edge=2560) == expected


def test_step_1_size_without_a_limit():
    assert get_resized_size(1, 10, shortest_edge=640) == (640, 6400)


def test_default_mean_and_std_are_the_papers(processor):
    torch.testing.assert_close(torch.tensor(processor.image_mean) * 255, MEAN.flatten())
    torch.testing.assert_close(torch.tensor(processor.image_std) * 255, STD.flatten())


def test_sliding_window_views(processor, picture):
    inputs = processor(picture, return_tensors="pt")
    step_1 = as_chw(picture.resize((962, 640), Image.Resampling.BILINEAR))
    tolerance = 1e-5 if processor.backend == "pil" else GREY_LEVEL
    assert set(inputs) == {"pixel_values", "global_pixel_values"}
    for name, side in (("pixel_values", 640), ("global_pixel_values", 384)):
        assert inputs[name].dtype == torch.float32
        torch.testing.assert_close(inputs[name], squeeze_and_normalize(step_1, side), atol=tolerance, rtol=0)


@needs_torchvision
@pytest.mark.parametrize("size", [(300, 451), (1200, 1600), (1, 3000), (3, 2), (700, 500)])
def test_backends_differ_by_one_grey_level_at_most(size):
    # Measured on noise, the worst case: 1 grey level, on 1.2 % of the values at most.
    pil, torchvision = CATSegImageProcessorPil(), CATSegImageProcessor()
    image = pil.process_image(noise(*size))
    new_size = get_resized_size(*size, shortest_edge=640, longest_edge=2560)
    difference = (
        pil._resize_to(image, new_size, pil.resample).int() - torchvision._resize_to(image, new_size, 2).int()
    ).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.02


def test_without_the_sliding_window_the_original_is_resized_once(processor, picture):
    inputs = processor(picture, sliding_window=False, image_size=336, return_tensors="pt")
    assert set(inputs) == {"pixel_values"}
    torch.testing.assert_close(inputs["pixel_values"], squeeze_and_normalize(as_chw(picture), 336), atol=1e-5, rtol=0)


def test_sizes_are_arguments(processor, picture):
    sizes = {"window_image_size": 20, "sliding_window_size": 12, "size": {"shortest_edge": 40}}
    inputs = processor(picture, return_tensors="pt", **sizes)
    step_1 = as_chw(picture.resize((60, 40), Image.Resampling.BILINEAR))
    expected = squeeze_and_normalize(step_1, 20)
    torch.testing.assert_close(inputs["pixel_values"], expected, atol=GREY_LEVEL * 1.01, rtol=0)
    assert inputs["global_pixel_values"].shape == (1, 3, 12, 12)
    with pytest.raises(ValueError, match="shortest_edge"):
        processor(picture, size={"height": 3, "width": 4})


@pytest.mark.parametrize(("size", "sides"), [({"height": 30, "width": 40}, (30, 40)), (50, (50, 50))])
def test_a_size_without_the_sliding_window(processor, picture, size, sides):
    expected = F.interpolate(as_chw(picture)[None].float(), size=sides, mode="bilinear", align_corners=False)
    for once in (processor, type(processor)(sliding_window=False)):
        pixels = once(picture, sliding_window=False, size=size, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels, (expected - MEAN) / STD, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="without the sliding window .*height and a width"):
        processor(picture, sliding_window=False, size={"shortest_edge": 30})


@pytest.mark.parametrize("arguments", [{"do_center_crop": True}, {"crop_size": 8}, {"do_pad": True}, {"pad_size": 8}])
def test_crops_and_padding_are_refused(processor, picture, arguments):
    with pytest.raises(ValueError, match=f"neither crop nor pad: leave out {next(iter(arguments))}"):
        processor(picture, **arguments)


def test_misspelt_arguments_are_refused(processor, picture):
    with pytest.raises(TypeError, match="slidng_window"):
        processor(picture, slidng_window=False)
    with pytest.raises(TypeError, match="'slidng_window': did you mean 'sliding_window'"):
        type(processor)(slidng_window=False)


def test_without_resize_pixels_are_only_normalized(processor, picture):
    inputs = processor(picture, do_resize=False, return_tensors="pt")
    assert set(inputs) == {"pixel_values"}
    torch.testing.assert_close(inputs["pixel_values"][0], (as_chw(picture) - MEAN) / STD)
    small = picture.resize((20, 10))
    assert [tuple(x.shape) for x in processor([picture, small], do_resize=False)["pixel_values"]] == [
        (3, 300, 451),
        (3, 10, 20),
    ]
    with pytest.raises(ValueError, match=r"\(10, 20\).*do_resize=True"):
        processor([picture, small], do_resize=False, return_tensors="pt")


def test_rescale_and_normalize_can_be_turned_off(processor, picture):
    pixels = processor(picture, do_resize=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, as_chw(picture) / 255)
    pixels = processor(picture, do_resize=False, do_normalize=False, do_rescale=False)["pixel_values"][0]
    torch.testing.assert_close(pixels, as_chw(picture))


def test_pictures_of_any_size_make_one_batch(processor):
    sizes = [(1, 1), (1, 300), (2000, 3), (300, 451), (6000, 8000)]
    inputs = processor([np.full((*size, 3), 100, np.uint8) for size in sizes], return_tensors="pt")
    assert inputs["pixel_values"].shape == (5, 3, 640, 640)
    assert inputs["global_pixel_values"].shape == (5, 3, 384, 384)
    expected = ((100 - MEAN) / STD).expand(5, 3, 640, 640)
    torch.testing.assert_close(inputs["pixel_values"], expected, atol=1e-5, rtol=0)


def test_return_types(processor, picture):
    lists = processor([picture, picture], segmentation_maps=[picture.convert("L")] * 2)
    assert all(isinstance(lists[name], list) and lists[name][1].shape[-1] in (384, 640) for name in lists)
    arrays = processor(picture, segmentation_maps=picture.convert("L"), return_tensors="np")
    assert arrays["pixel_values"].dtype == np.float32
    assert arrays["labels"].dtype == np.int64


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_pil_modes(processor, picture, mode):
    via = {"PA": "P", "RGBa": "RGBA", "La": "LA"}.get(mode, mode)
    image = picture.convert(via).convert(mode)
    pixels = processor(image, do_resize=False, do_normalize=False, do_rescale=False)["pixel_values"][0]
    assert torch.equal(pixels, as_chw(picture.convert(via)))


@pytest.mark.parametrize("mode", ["P", "L"])
def test_transparency_that_does_not_fit_the_mode(processor, mode):
    image = Image.new(mode, (4, 4))
    image.info["transparency"] = "a"
    with pytest.raises(ValueError, match=f"Image 0 of mode '{mode}' cannot be made RGB"):
        processor(images=image)


def test_palette_with_transparency_keeps_its_colours(processor, picture, recwarn):
    image = picture.quantize(16)
    image.info["transparency"] = b"\x00\x10"
    pixels = processor(image, do_resize=False, do_normalize=False, do_rescale=False)["pixel_values"][0]
    assert torch.equal(pixels, as_chw(picture.quantize(16)))
    assert not recwarn


@pytest.mark.parametrize(
    ("dtype", "factor", "mode"),
    [
        (np.uint16, 257, "I;16"),
        (np.int32, 257, "I"),
        (np.int32, 1, "I"),
        (np.float32, 257, "F"),
        (np.float32, 1, "F"),
        (np.float32, 1 / 255, "F"),
    ],
)
def test_deep_pictures_are_scaled_to_8_bits_not_clipped(processor, dtype, factor, mode):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray((grey * np.float64(factor)).astype(dtype))
    assert image.mode == mode
    pixels = processor(image, do_resize=False, do_normalize=False, do_rescale=False)["pixel_values"][0]
    assert torch.equal(pixels, torch.from_numpy(grey).float().expand(3, 16, 16))


def test_16_bits_are_rounded_to_the_nearest_grey_level(processor):
    array = np.array([[0, 128, 129, 257 + 128, 257 + 129, 65535]], np.uint16)
    pixels = processor(array, do_resize=False, do_normalize=False, do_rescale=False)["pixel_values"][0]
    assert pixels[0].tolist() == [[0, 0, 1, 1, 2, 255]]


def test_files_are_turned_upright(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 30)).save(tmp_path / "turned.png", exif=exif)
    pixels = processor(str(tmp_path / "turned.png"), do_resize=False, do_normalize=False, do_rescale=False)
    expected = torch.from_numpy(np.rot90(noise(20, 30), k=-1).copy()).permute(2, 0, 1).float()
    assert torch.equal(pixels["pixel_values"][0], expected)


def test_16_bit_files_are_not_clipped(processor, tmp_path):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(grey).save(tmp_path / "deep.png")
    pixels = processor(str(tmp_path / "deep.png"), do_resize=False, do_normalize=False)["pixel_values"][0]
    torch.testing.assert_close(pixels[0] * 65535, torch.from_numpy(grey.astype(np.float32)))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_array_layouts(processor, channels, as_tensor, channels_first, dtype):
    array = noise(20, 30, channels)
    expected = np.broadcast_to(array[..., :3], (20, 30, 3)).transpose(2, 0, 1)
    array = np.moveaxis(array, -1, 0) if channels_first else array
    array = array.astype(dtype)
    batch = [torch.from_numpy(array) if as_tensor else array]
    pixels = processor(batch, do_resize=False, do_normalize=False, do_rescale=False)["pixel_values"][0]
    assert torch.equal(pixels, torch.tensor(expected.astype(np.float32)))


def test_grey_arrays_and_ambiguous_shapes(processor):
    raw = {"do_resize": False, "do_normalize": False, "do_rescale": False}
    grey = noise(20, 30, 1)[..., 0]
    assert torch.equal(processor(grey, **raw)["pixel_values"][0][2], torch.from_numpy(grey).float())
    assert processor(noise(1, 1), **raw)["pixel_values"][0].shape == (3, 1, 1)
    assert processor(noise(1, 50), **raw)["pixel_values"][0].shape == (3, 1, 50)
    assert processor(noise(3, 50), **raw)["pixel_values"][0].shape == (3, 50, 3)
    image = processor(noise(3, 50), input_data_format="channels_last", **raw)["pixel_values"][0]
    assert image.shape == (3, 3, 50)


@pytest.mark.parametrize(
    "shape, warned", [((3, 50, 3), True), ((1, 50, 3), True), ((20, 30, 3), False), ((3, 9, 9), False)]
)
def test_shapes_of_two_readings_are_not_taken_without_a_word(processor, caplog, shape, warned):
    image_pixels_catseg.logger.warning_once.cache_clear()
    processor(np.zeros(shape, dtype=np.uint8))
    assert ("input_data_format" in caplog.text) == warned


def test_read_only_arrays_pass_without_a_warning(processor, recwarn):
    array = noise(20, 30)
    array.setflags(write=False)
    processor(array, segmentation_maps=array[..., 0])
    assert not recwarn.list


def test_batched_arrays_and_nested_lists(processor):
    batch = np.stack([noise(20, 30), 255 - noise(20, 30)])
    expected = processor(list(batch), return_tensors="pt")["pixel_values"]
    assert not torch.equal(expected[0], expected[1])
    assert torch.equal(processor(batch, return_tensors="pt")["pixel_values"], expected)
    assert torch.equal(processor([[batch[0]], [batch[1]]], return_tensors="pt")["pixel_values"], expected)


def test_float_pictures_are_not_rounded_to_grey_levels(processor):
    array = np.full((20, 30, 3), 0.3 / 255, np.float32)
    inputs = processor(array, do_rescale=False, do_normalize=False, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], torch.full((1, 3, 640, 640), 0.3 / 255))


def test_float_pictures_go_through_step_1(processor, picture):
    array = np.array(picture).astype(np.float64) / 255
    inputs = processor(array, do_rescale=False, return_tensors="pt")
    expected = processor(picture, return_tensors="pt")
    for name in expected:
        torch.testing.assert_close(inputs[name], expected[name], atol=GREY_LEVEL * 1.01, rtol=0)
        assert (inputs[name] - expected[name]).abs().mean() < GREY_LEVEL / 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("as_pil", [False, True])
def test_non_finite_pixels_are_refused(processor, picture, value, as_pil):
    array = np.zeros((4, 5), np.float32)
    array[1, 2] = value
    bad = Image.fromarray(array) if as_pil else array
    with pytest.raises(ValueError, match="Image 1 holds NaN or infinite"):
        processor([picture, bad])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), r"Image 1 has shape \(0, 5, 3\)"),
        (Image.new("RGB", (0, 4)), r"Image 1 has shape"),
        (np.zeros((6, 5, 2), np.uint8), "6 channels"),
        (np.full((4, 5), 70000), "Image 1 holds integers from 70000"),
        (np.full((4, 5), -1), "Image 1 holds integers from -1"),
    ],
)
def test_impossible_pictures_are_refused(processor, picture, bad, message):
    with pytest.raises(ValueError, match=message):
        processor([picture, bad])


def test_no_pictures_are_refused(processor):
    with pytest.raises(ValueError, match="No images"):
        processor([])


def test_without_conversion_only_rgb_is_accepted(processor, picture):
    with pytest.raises(ValueError, match="1 channels"):
        processor(picture.convert("L"), do_convert_rgb=False)


@needs_torchvision
def test_device(picture):
    inputs = CATSegImageProcessor()(picture, device="meta", return_tensors="pt")
    assert {name: x.device.type for name, x in inputs.items()} == {
        "pixel_values": "meta",
        "global_pixel_values": "meta",
    }


def test_the_pil_class_stays_on_the_cpu(picture):
    assert CATSegImageProcessorPil()(picture, device="meta", return_tensors="pt")["pixel_values"].device.type == "cpu"


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_the_torchvision_class_names_what_is_missing():
    with pytest.raises(ImportError, match="Torchvision"):
        CATSegImageProcessor()


def test_saved_and_loaded(processor, tmp_path):
    custom = type(processor)(sliding_window=False, image_size=96, size={"shortest_edge": 320})
    custom.save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path)
    assert loaded.to_dict() == custom.to_dict()
    assert loaded.to_dict()["image_processor_type"] == "CATSegImageProcessor"
    assert loaded(noise(5, 6), return_tensors="pt")["pixel_values"].shape == (1, 3, 96, 96)


# 241 of 640 and 97 of 480 put sources on and around exact halves.
@pytest.mark.parametrize("size", [(300, 451), (1, 7), (97, 241), (1280, 960), (640, 640)])
def test_label_maps_are_resized_as_pil_does(processor, size):
    values = np.random.default_rng(0).integers(0, 60000, size).astype(np.int32)
    expected = np.array(Image.fromarray(values).resize((640, 640), Image.Resampling.NEAREST))
    labels = labels_of(processor, values, np.zeros((*size, 3), np.uint8))
    assert labels.dtype == torch.int64
    assert np.array_equal(labels[0], expected)


def test_label_maps_follow_pixel_values(processor):
    image, label = noise(8, 10), np.arange(80).reshape(8, 10)
    assert labels_of(processor, label, image, sliding_window=False).shape == (1, 384, 384)
    assert torch.equal(labels_of(processor, label, image, do_resize=False)[0], torch.from_numpy(label))


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda x: Image.fromarray(x.astype(np.uint16)),
        lambda x: Image.fromarray(x.astype(np.int32)),
        lambda x: Image.fromarray(x).convert("P"),
        lambda x: x,
        lambda x: x[None],
        lambda x: x[..., None],
        lambda x: [x],
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).float(),
    ],
)
def test_label_map_types(processor, convert):
    label = np.arange(80, dtype=np.uint8).reshape(8, 10)
    labels = labels_of(processor, convert(label), noise(8, 10), do_resize=False)
    assert torch.equal(labels, torch.from_numpy(label).long()[None])


def test_label_values_are_never_changed(processor):
    label = np.array([[-100, 255], [65535, 2**40]])
    assert torch.equal(labels_of(processor, label, noise(2, 2), do_resize=False)[0], torch.from_numpy(label))
    deep = Image.fromarray(np.array([[256, 65535]], np.uint16))
    assert labels_of(processor, deep, noise(1, 2), do_resize=False).tolist() == [[[256, 65535]]]


def test_palette_label_maps_give_indices_also_from_files(processor, tmp_path):
    label = Image.fromarray(np.array([[0, 7], [2, 255]], np.uint8)).convert("P")
    label.putpalette([255 - i // 3 for i in range(768)])
    label.save(tmp_path / "label.png")
    for given in (label, str(tmp_path / "label.png")):
        assert labels_of(processor, given, noise(2, 2), do_resize=False).tolist() == [[[0, 7], [2, 255]]]


def test_batches_of_label_maps(processor):
    images = [noise(8, 10), noise(8, 10)]
    maps = np.arange(160).reshape(2, 8, 10)
    for given in (maps, list(maps), maps[:, None], maps[..., None]):
        assert torch.equal(labels_of(processor, given, images, do_resize=False), torch.from_numpy(maps))


def test_do_reduce_labels(processor):
    label = np.array([[0, 1], [254, 255]])
    expected = [[[255, 0], [253, 255]]]
    assert labels_of(processor, label, noise(2, 2), do_resize=False, do_reduce_labels=True).tolist() == expected
    always = type(processor)(do_reduce_labels=True)
    assert labels_of(always, label, noise(2, 2), do_resize=False).tolist() == expected
    assert labels_of(processor, label, noise(2, 2), do_resize=False).tolist() == [label.tolist()]
    with pytest.raises(ValueError, match="id 256, but `do_reduce_labels` takes ids of at most 255"):
        labels_of(processor, label + 1, noise(2, 2), do_resize=False, do_reduce_labels=True)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([np.zeros((8, 10), int), np.zeros((10, 8), int)], r"map 1 has size \(10, 8\).*size \(8, 10\)"),
        ([np.zeros((8, 10), int), np.zeros((8, 10, 3), int)], r"map 1 has shape \(8, 10, 3\).*colours"),
        ([np.zeros((8, 10), int), Image.new("RGB", (10, 8))], r"map 1 has shape \(8, 10, 3\).*colours"),
        ([np.zeros((8, 10), int)], "1 segmentation maps were given for 2 images"),
        (np.zeros((3, 8, 10), int), "3 segmentation maps were given for 2 images"),
        ([np.zeros((8, 10), int), np.full((8, 10), 0.5)], "map 1 holds values that are not whole"),
        ([np.zeros((8, 10), int), np.full((8, 10), np.nan)], "map 1 holds values that are not whole"),
    ],
)
def test_impossible_label_maps_are_refused(processor, maps, message):
    with pytest.raises(ValueError, match=message):
        processor([noise(8, 10), noise(8, 10)], segmentation_maps=maps)


def outputs_of(*shape):
    return SimpleNamespace(logits=torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def resized_probabilities(logits, size):
    return F.interpolate(logits.sigmoid()[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("chunk_bytes", [1, 50_000, 2**27])
def test_post_process_resizes_probabilities(processor, monkeypatch, chunk_bytes):
    monkeypatch.setattr(post_processing_catseg, "_MAX_CPU_CHUNK_BYTES", chunk_bytes)
    outputs = outputs_of(2, 7, 12, 16)
    outputs.logits *= 8
    sizes = [(50, 41), (7, 100)]
    segmentations = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    for logits, size, segmentation in zip(outputs.logits, sizes, segmentations, strict=True):
        assert segmentation.dtype == torch.int64
        assert torch.equal(segmentation, resized_probabilities(logits, size).argmax(dim=0))
        resized_logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        assert not torch.equal(segmentation, resized_logits.argmax(dim=0))


@pytest.mark.parametrize("shape", [(1, 2), (2, 1)])
def test_a_class_may_win_between_pixels_only(processor, shape):
    probabilities = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.6]]).reshape(1, 3, *shape)
    outputs = SimpleNamespace(logits=probabilities.logit())
    (segmentation,) = processor.post_process_semantic_segmentation(outputs, [tuple(10 * side for side in shape)])
    assert segmentation.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_classes", [2, 4, 7, 10])
def test_no_class_is_resized_by_itself(processor, monkeypatch, num_classes):
    """It would be rounded differently than in the company of others."""
    resized = []

    def resize(images, size, original=post_processing_catseg.resize_bilinear):
        resized.append(images.shape[1])
        return original(images, size)

    monkeypatch.setattr(post_processing_catseg, "_MAX_CPU_CHUNK_BYTES", 1)
    monkeypatch.setattr(post_processing_catseg, "resize_bilinear", resize)
    processor.post_process_semantic_segmentation(outputs_of(1, num_classes, 12, 16), [(50, 41)])
    assert sum(resized) == num_classes and set(resized) <= {2, 3}


@pytest.mark.parametrize("size", [(70, 90), (7, 300), (200, 131), (23, 41)])
@pytest.mark.parametrize("contrast", [2, 40])
def test_classes_that_win_nowhere_are_left_out(processor, size, contrast):
    """And no others: also where the probabilities of several classes are rounded to 1, of which the first wins."""
    noise = torch.randn(1, 60, 5, 6, generator=torch.Generator().manual_seed(0))
    noise[:, 20:] -= 2
    logits = contrast * F.interpolate(noise, (70, 90), mode="bicubic")
    possible = post_processing_catseg._possible_classes(logits[0])
    assert 5 < len(possible) < 55
    (segmentation,) = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), [size])
    assert torch.equal(segmentation, resized_probabilities(logits[0], size).argmax(dim=0))


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (1, 4), (4, 1)])
def test_classes_that_win_between_pixels_only(processor, shape):
    """They lose at every pixel of the model's map, but are second at neighbours that different classes win."""
    num_between = 0
    for seed in range(100):
        logits = 3 * torch.randn(6, *shape, generator=torch.Generator().manual_seed(seed))
        (segmentation,) = processor.post_process_semantic_segmentation(
            SimpleNamespace(logits=logits[None]), [(23, 31)]
        )
        expected = resized_probabilities(logits, (23, 31)).argmax(dim=0)
        assert torch.equal(segmentation, expected), seed
        num_between += len(set(expected.unique().tolist()) - set(logits.argmax(dim=0).unique().tolist()))
    assert num_between > 5


@pytest.mark.parametrize("size", [None, [(9, 14)]])
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("origin", ["graph", "leaf", "inference"])
def test_post_process_takes_logits_of_any_origin(processor, size, scores, origin):
    logits = torch.randn(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), size)[0]
    if origin == "inference":
        with torch.inference_mode():
            logits = logits.clone()
    else:
        logits = logits.clone().requires_grad_()
        logits = logits * 1 if origin == "graph" else logits
    outputs = SimpleNamespace(logits=logits)
    result = processor.post_process_semantic_segmentation(outputs, size, return_segmentation_scores=scores)[0]
    assert torch.equal(result["segmentation"] if scores else result, expected)
    classes, probabilities = processor.post_process_most_probable_class(outputs, size)[0]
    assert torch.equal(classes, expected) and not probabilities.requires_grad


def test_pictures_that_carry_a_graph(processor, picture):
    pixels = as_chw(picture).float()
    expected = processor(pixels, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(pixels.requires_grad_() * 1, return_tensors="pt")["pixel_values"], expected)


def test_post_process_without_target_sizes_keeps_the_size(processor):
    outputs = outputs_of(2, 7, 12, 16)
    segmentations = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(segmentations), outputs.logits.argmax(dim=1))


@pytest.mark.parametrize("chunk_bytes", [1, 2**27])
def test_post_process_takes_the_first_of_equal_classes(processor, monkeypatch, chunk_bytes):
    monkeypatch.setattr(post_processing_catseg, "_MAX_CPU_CHUNK_BYTES", chunk_bytes)
    outputs = outputs_of(1, 1, 12, 16)
    outputs.logits = torch.cat([outputs.logits - 5, *[outputs.logits] * 4], dim=1)
    (segmentation,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(33, 50)])
    assert (segmentation == 1).all()


def test_post_process_of_impossible_classes(processor):
    outputs = SimpleNamespace(logits=torch.full((1, 3, 4, 4), -1e4))
    (segmentation,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(8, 8)])
    assert (segmentation == 0).all()


def test_post_process_scores_are_probabilities(processor):
    outputs = outputs_of(2, 7, 12, 16)
    results = processor.post_process_semantic_segmentation(outputs, torch.tensor([[50, 41], [7, 100]]), True)
    for logits, size, result in zip(outputs.logits, [(50, 41), (7, 100)], results, strict=True):
        assert torch.equal(result.segmentation_scores, resized_probabilities(logits, size))
        assert torch.equal(result.segmentation, result.segmentation_scores.argmax(dim=0))


def test_post_process_in_half_precision_computes_in_float32(processor):
    outputs = SimpleNamespace(logits=outputs_of(1, 7, 12, 16).logits.bfloat16())
    (result,) = processor.post_process_semantic_segmentation(outputs, [(24, 32)], return_segmentation_scores=True)
    assert torch.equal(result.segmentation_scores, resized_probabilities(outputs.logits[0].float(), (24, 32)))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(5, 5)], "1 target sizes were given for 2 images"),
        (torch.ones(3, 2, dtype=torch.int64), "3 target sizes were given for 2 images"),
        ([(5, 5), (0, 5)], r"\(0, 5\) is not accepted"),
        ([(5, 5), (5.5, 5)], r"\(5.5, 5\) is not accepted"),
        ([(5, 5), (5, 5, 3)], r"\(5, 5, 3\) is not accepted"),
        ([(5, 5), 5], "size 5 is not accepted"),
    ],
)
def test_impossible_target_sizes_are_refused(processor, sizes, message):
    with pytest.raises(ValueError, match=message):
        processor.post_process_semantic_segmentation(outputs_of(2, 7, 12, 16), target_sizes=sizes)


class LargestTensor(TorchDispatchMode):
    """Records the largest storage that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def test_post_process_memory_is_bounded(processor, monkeypatch):
    # As 847 classes at 1,500 x 1,500 are to 24 MB, only smaller: all probabilities would take 40 times the bound.
    monkeypatch.setattr(post_processing_catseg, "_MAX_CPU_CHUNK_BYTES", 2**20)
    outputs = SimpleNamespace(logits=torch.randn(400, 64, 64)[None].expand(2, -1, -1, -1))
    logits_bytes = outputs.logits.untyped_storage().nbytes()
    with LargestTensor() as largest:
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(160, 160), (64, 64)])
    # Views of the logits count as the logits themselves.
    assert largest.bytes <= max(2**20, logits_bytes)
    assert logits_bytes < 400 * 160 * 160 * 4
