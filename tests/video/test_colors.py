"""Colours of HDR and wide-gamut video, as the model sees them and as they are written."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from catseg_hf import EMBEDDED_MODEL, cli
from catseg_hf.video import VideoReader, files, segment_video
from catseg_hf.video.colors import HLG, PQ, convert
from catseg_hf.visualization import overlay_segmentation
from catseg_testing.video_clips import copy, read_clip
from conftest import ROOT


LABELS = ["snow", "balloon", "water"]
SIZE = (128, 96)
SDR = 1
BT709, UNSPECIFIED, SMPTE170M, BT2020, DISPLAY_P3 = 1, 2, 6, 9, 12
LIMITED, FULL = 1, 2
BT709_TAGS = (BT709, LIMITED, BT709, SDR)
# From linear BT.709: ITU-R BT.2087 and SMPTE EG 432-1.
FROM_BT709 = {
    BT2020: [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]],
    DISPLAY_P3: [[0.8225, 0.1775, 0.0], [0.0332, 0.9668, 0.0], [0.0171, 0.0724, 0.9105]],
}


def scene(brightness=1.0):
    with Image.open(ROOT / "demo" / "scene.png") as image:
        return (np.asarray(image.convert("RGB").resize(SIZE)) * brightness).round().astype(np.uint8)


def srgb_to_linear(pixels):
    values = np.asarray(pixels) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light):
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def pq_signal(luminance):
    """Of light in cd/m2, by the inverse EOTF of ITU-R BT.2100."""
    power = (luminance / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_signal(luminance):
    """Of light in cd/m2 on the reference display, by the inverse OOTF and the OETF of ITU-R BT.2100."""
    light = np.maximum(luminance / 1000, 1e-9)
    light = light * (light @ [0.2627, 0.6780, 0.0593])[..., None] ** (1 / 1.2 - 1)
    log = 0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.55991073
    return np.where(light <= 1 / 12, np.sqrt(3 * light), log)


def signal(pixels, transfer, primaries):
    """A picture in sRGB as it would be recorded, 0 to 1: diffuse white at 203 cd/m2 in HDR."""
    if transfer == SDR:
        values = pixels / 255
        return values if primaries == BT709 else (values**2.4 @ np.transpose(FROM_BT709[primaries])) ** (1 / 2.4)
    luminance = 203 * srgb_to_linear(pixels) @ np.transpose(FROM_BT709[primaries])
    return (pq_signal if transfer == PQ else hlg_signal)(luminance)


def encode(values, matrix, color_range, pixel_format):
    if pixel_format.startswith("gbr"):
        frame = av.VideoFrame.from_ndarray((65535 * values).round().astype(np.uint16), format="rgb48le")
        return frame.reformat(format=pixel_format)
    red, blue = {BT709: (0.2126, 0.0722), SMPTE170M: (0.299, 0.114), BT2020: (0.2627, 0.0593)}[matrix]
    luma = values @ [red, 1 - red - blue, blue]
    chroma = (values[..., 2] - luma) / (2 - 2 * blue), (values[..., 0] - luma) / (2 - 2 * red)
    offsets, factors = ((16, 128), (219, 224)) if color_range == LIMITED else ((0, 128), (255.996, 255.996))
    planes = [offsets[0] + factors[0] * luma, *(offsets[1] + factors[1] * plane for plane in chroma)]
    levels = (256 * np.stack(planes, -1)).round().clip(0, 65535).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(levels, format="yuv444p16le")
    frame.colorspace, frame.color_range = matrix, color_range
    return frame.reformat(format=pixel_format)


def write_hdr_clip(
    path,
    values,
    transfer,
    primaries,
    matrix=None,
    color_range=LIMITED,
    pixel_format="yuv420p10le",
    tagged_matrix=None,
    codec="ffv1",
    num_frames=2,
):
    matrix = matrix or (BT2020 if primaries == BT2020 else BT709)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5, width=SIZE[0], height=SIZE[1], pix_fmt=pixel_format)
        context = stream.codec_context
        context.color_primaries, context.color_trc = primaries, transfer
        context.colorspace, context.color_range = tagged_matrix or matrix, color_range
        for index in range(num_frames):
            frame = encode(values.clip(0, 1), matrix, color_range, pixel_format)
            frame.colorspace = tagged_matrix or matrix
            frame.pts, frame.time_base = index, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_pixels(path):
    with VideoReader(path) as video:
        frame, *_ = video.read_frames(lambda packet: None)
    return np.asarray(frame.image).astype(int)


def color_tags(frame):
    return frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc


@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv444p12le"])
@pytest.mark.parametrize(
    ("transfer", "primaries"),
    [(PQ, BT2020), (HLG, BT2020), (PQ, DISPLAY_P3), (SDR, BT2020), (SDR, DISPLAY_P3), (SDR, BT709)],
)
def test_colours_are_those_of_the_scene(tmp_path, transfer, primaries, pixel_format, color_range):
    pixels = scene(0.85)  # below the knee
    values = signal(pixels, transfer, primaries)
    kwargs = {"pixel_format": pixel_format, "color_range": color_range}
    clip = write_hdr_clip(tmp_path / "clip.mkv", values, transfer, primaries, **kwargs)
    difference = np.abs(read_pixels(clip) - pixels)
    if "444" in pixel_format:
        assert difference.mean() < 1.5 and np.percentile(difference, 99) < 6
    else:
        assert difference.mean() < 5  # colours at half the resolution


@pytest.mark.parametrize("tagged_primaries", [BT2020, UNSPECIFIED])
def test_a_matrix_that_is_not_tagged_is_that_of_hdr(tmp_path, tagged_primaries):
    pixels = scene(0.85)
    kwargs = {"matrix": BT2020, "tagged_matrix": UNSPECIFIED, "pixel_format": "yuv444p12le"}
    clip = write_hdr_clip(tmp_path / "clip.mkv", signal(pixels, PQ, BT2020), PQ, tagged_primaries, **kwargs)
    assert color_tags(read_clip(clip)[3][0])[0] == UNSPECIFIED
    assert np.abs(read_pixels(clip) - pixels).mean() < 1.5


@pytest.mark.parametrize("matrix", [BT709, SMPTE170M])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("pixel_format", ["yuv444p", "yuv444p10le", "gbrp10le"])
def test_ordinary_video_stays_as_it_is(tmp_path, pixel_format, color_range, matrix):
    pixels = scene()
    kwargs = {"matrix": matrix, "color_range": color_range, "pixel_format": pixel_format}
    clip = write_hdr_clip(tmp_path / "clip.mkv", pixels / 255, SDR, BT709, **kwargs)
    assert np.abs(read_pixels(clip) - pixels).mean() < 1.5
    assert copy(clip, tmp_path / "out.mkv")
    (before, *_), (after, *_) = (read_clip(path)[3] for path in (clip, tmp_path / "out.mkv"))
    if pixel_format != "gbrp10le":
        assert color_tags(after) == color_tags(before) == (matrix, color_range, BT709, SDR)
    assert np.abs(after.to_ndarray(format="rgb24") - pixels.astype(int)).mean() < 6


# Signals and the light that they stand for, in cd/m2, from ITU-R BT.2100 and BT.2408.
@pytest.mark.parametrize(
    ("transfer", "value", "luminance"),
    [(PQ, 0.0, 0), (PQ, 0.1499, 1), (PQ, 0.2997, 10), (PQ, 0.5081, 100), (HLG, 0.0, 0), (HLG, 0.5, 50.7)],
)
def test_light_below_the_knee_is_kept(transfer, value, luminance):
    grey = np.full((1, 1, 3), round(65535 * value), np.uint16)
    expected = linear_to_srgb(luminance / 203)
    assert np.abs(convert(grey, transfer, "BT.2020") - expected).max() < 1


@pytest.mark.parametrize(("transfer", "white"), [(PQ, 0.5807), (HLG, 0.75)])
def test_highlights_come_near_white_and_keep_their_order_and_hue(transfer, white):
    ramp = np.linspace(white, 1, 64)
    levels = convert((65535 * ramp[:, None].repeat(3, 1)).round().astype(np.uint16), transfer, "BT.2020").astype(int)
    assert (levels == levels[:, :1]).all()
    assert 240 <= levels[0, 0] <= 246 and levels[-1, 0] >= 253
    assert (np.diff(levels[:, 0]) >= 0).all()
    orange = 203 * np.array([4.0, 2.0, 1.0]) @ np.transpose(FROM_BT709[BT2020])
    values = (pq_signal if transfer == PQ else hlg_signal)(orange[None])
    light = srgb_to_linear(convert((65535 * values).round().astype(np.uint16), transfer, "BT.2020"))[0]
    assert light / light[0] == pytest.approx([1, 0.5, 0.25], abs=0.02)


def test_colours_outside_of_the_gamut_are_cut():
    green = np.array([[0, 65535, 0]], np.uint16)
    assert convert(green, SDR, "BT.2020").tolist() == [[0, 255, 0]]


@pytest.fixture(scope="module")
def segmenter():
    return pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def shares(segmenter):
    expected = segmenter(Image.fromarray(scene()), LABELS, return_segmentation_map=True)["segmentation"]
    return {index: (expected == index).float().mean().item() for index in range(len(LABELS))}


@pytest.mark.parametrize(
    ("transfer", "primaries", "suffix"),
    [
        (SDR, BT709, ".mp4"),
        (SDR, BT2020, ".mp4"),
        (HLG, BT2020, ".mp4"),
        (PQ, BT2020, ".mp4"),
        (PQ, BT2020, ".mov"),
        (PQ, BT2020, ".mkv"),
    ],
)
def test_the_same_scene_gives_the_same_segmentation(tmp_path, segmenter, shares, transfer, primaries, suffix):
    clip, output = tmp_path / "clip.mp4", tmp_path / f"out{suffix}"
    write_hdr_clip(clip, signal(scene(), transfer, primaries), transfer, primaries, codec="libx264")
    assert color_tags(read_clip(clip)[3][0])[2:] == (primaries, transfer)
    with VideoReader(clip) as video:
        summary = segment_video(segmenter, video, output, LABELS)
    assert summary.shares == pytest.approx(shares, abs=0.03)
    image = Image.fromarray(read_pixels(clip).astype(np.uint8))
    segmentation = segmenter(image, LABELS, return_segmentation_map=True)["segmentation"]
    drawn = np.asarray(overlay_segmentation(image, segmentation)).astype(int)
    frame = read_clip(output)[3][0]
    assert color_tags(frame) == BT709_TAGS and frame.format.name == "yuv420p"
    assert np.abs(frame.to_ndarray(format="rgb24") - drawn).mean() < 8


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"transfer": 17, "primaries": BT709}, "transfer 17"),
        ({"transfer": SDR, "primaries": 10}, "primaries 10"),
        ({"transfer": PQ, "primaries": BT2020, "tagged_matrix": 14}, "matrix 14"),
    ],
)
def test_what_cannot_be_converted_is_said_once(tmp_path, capsys, monkeypatch, tags, code):
    files.logger.warning_once.cache_clear()
    clip = write_hdr_clip(tmp_path / "clip.mkv", scene() / 255, **tags, num_frames=3)
    warnings = []
    monkeypatch.setattr(files.logger, "warning", lambda message, *arguments: warnings.append(message))
    assert cli.main(["video", str(clip), "--labels", "snow, water", "--output", str(tmp_path / "out.mp4")]) == 0
    (warning,) = [message for message in warnings if "sRGB" in message]
    assert repr(str(clip)) in warning and f"({code} of ITU-T H.273)" in warning
    assert color_tags(read_clip(tmp_path / "out.mp4")[3][0]) == BT709_TAGS


def test_a_stream_that_changes_to_hdr_and_back(tmp_path):
    parts = [(SDR, BT709), (PQ, BT2020), (SDR, BT709)]
    clip = tmp_path / "clip.h264"
    content = b""
    for transfer, primaries in parts:
        values = signal(scene(0.85), transfer, primaries)
        content += write_hdr_clip(clip, values, transfer, primaries, codec="libx264").read_bytes()
    clip.write_bytes(content)
    assert copy(clip, tmp_path / "out.mp4")
    frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in read_clip(tmp_path / "out.mp4")[3]]
    assert len(frames) == 6
    for frame in frames:
        assert np.abs(frame - scene(0.85)).mean() < 9
