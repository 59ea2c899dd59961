"""
Frames in sRGB, as models have seen images: high dynamic range (PQ and HLG, ITU-R BT.2100) and wide gamuts (BT.2020,
P3) are converted, what is ordinary video stays as it is.

HDR is scaled so that diffuse white, 203 cd/m2 as in ITU-R BT.2408, is 1. Up to `KNEE` light is kept; above it the
largest of red, green and blue approaches 1, so that highlights keep their hue and some of their detail.
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    import av


# Code points of ITU-T H.273, which FFmpeg has as well.
UNSPECIFIED = 2
PQ, HLG = 16, 18
BT709, BT2020, DCI_P3, DISPLAY_P3 = 1, 9, 11, 12
UNUSUAL_TRANSFERS = (8, 9, 10, 17)  # linear, logarithmic, SMPTE 428
XYZ_PRIMARIES = 10
USUAL_MATRICES = (0, 1, UNSPECIFIED, 4, 5, 6, 7, 9)  # those that FFmpeg converts to RGB
BT709_TAGS = {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1}

DIFFUSE_WHITE = 203  # cd/m2
HLG_PEAK, HLG_GAMMA = 1000, 1.2  # of BT.2100's reference display
SDR_GAMMA = 2.4
KNEE = 0.8
LEVELS = 1 << 16
BAND = 64  # rows that are converted at once, so that a frame of any height takes little memory

WHITE = (0.3127, 0.3290)
CHROMATICITIES = {
    "BT.709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    "BT.2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
WIDE_GAMUTS = {BT2020: "BT.2020", DCI_P3: "P3", DISPLAY_P3: "P3"}  # with the white of cinemas adapted


def is_ordinary(frame: "av.VideoFrame") -> bool:
    """Whether a frame's colours are those of ordinary video, so that they need no conversion and its tags can stay."""
    return (
        frame.color_trc not in (PQ, HLG) and frame.color_primaries not in WIDE_GAMUTS and not unusual_color_tags(frame)
    )


def unusual_color_tags(frame: "av.VideoFrame") -> dict[str, int]:
    """Those of a frame's tags for which there is no conversion, as code points of ITU-T H.273."""
    tags = {
        "transfer": (frame.color_trc, frame.color_trc in UNUSUAL_TRANSFERS),
        "primaries": (frame.color_primaries, frame.color_primaries == XYZ_PRIMARIES),
        "matrix": (frame.colorspace, frame.colorspace not in USUAL_MATRICES),
    }
    return {name: code for name, (code, is_unusual) in tags.items() if is_unusual}


def srgb_pixels(frame: "av.VideoFrame", width: int, height: int) -> np.ndarray:
    """
    Args:
        frame (`av.VideoFrame`): A frame, whose tags say what its values mean; its matrix is set where it has none that
            FFmpeg knows.
        width (`int`), height (`int`): The size that it is given.

    Returns:
        `np.ndarray` of shape (height, width, 3), uint8: its pixels in sRGB.
    """
    unusual = unusual_color_tags(frame)
    if unusual or is_ordinary(frame):
        if "matrix" in unusual:
            frame.colorspace = BT709
        return frame.to_ndarray(format="rgb24", width=width, height=height)
    is_hdr = frame.color_trc in (PQ, HLG)
    primaries = BT2020 if is_hdr and frame.color_primaries == UNSPECIFIED else frame.color_primaries
    if frame.colorspace == UNSPECIFIED and primaries == BT2020:
        frame.colorspace = BT2020
    signal = frame.to_ndarray(format="rgb48le", width=width, height=height)
    pixels = np.empty(signal.shape, np.uint8)
    for top in range(0, height, BAND):
        band = slice(top, top + BAND)
        pixels[band] = convert(signal[band], frame.color_trc, WIDE_GAMUTS.get(primaries, "BT.709"))
    return pixels


def convert(signal: np.ndarray, transfer: int, gamut: str) -> np.ndarray:
    """
    Args:
        signal (`np.ndarray`): Non-linear RGB of any shape (..., 3), uint16 with all of its range.
        transfer (`int`): `PQ`, `HLG`, or any other code point for ordinary video.
        gamut (`str`): One of `CHROMATICITIES`.

    Returns:
        `np.ndarray` of the same shape, uint8: in sRGB for PQ and HLG, otherwise in the transfer that it had, with the
        primaries of BT.709.
    """
    light = np.take(linear_table(transfer), signal)
    if transfer == HLG:
        luminance = light @ to_xyz(gamut)[1].astype(np.float32)
        light *= (HLG_PEAK / DIFFUSE_WHITE * luminance ** (HLG_GAMMA - 1))[..., None]
    light = light @ (np.linalg.inv(to_xyz("BT.709")) @ to_xyz(gamut)).T.astype(np.float32)
    if transfer in (PQ, HLG):
        peak = np.maximum(np.maximum(light[..., :1], light[..., 1:2]), np.maximum(light[..., 2:], KNEE))
        over = (peak - KNEE) / (1 - KNEE)
        light *= (KNEE + (1 - KNEE) * over / (1 + over)) / peak
    levels = (light.clip(0, 1) * (LEVELS - 1) + 0.5).astype(np.uint16)
    return np.take(encoding_table(transfer), levels)


@cache
def linear_table(transfer: int) -> np.ndarray:
    """Light in float32 for every 16-bit value: 1 is diffuse white for PQ, the peak of the scene for HLG."""
    values = np.linspace(0, 1, LEVELS)
    if transfer == PQ:
        m1, m2 = 2610 / 16384, 2523 / 4096 * 128
        c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        power = values ** (1 / m2)
        light = 10000 / DIFFUSE_WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    elif transfer == HLG:
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        light = np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)
    else:
        light = values**SDR_GAMMA
    return light.astype(np.float32)


@cache
def encoding_table(transfer: int) -> np.ndarray:
    """8-bit values for 65,536 levels of light."""
    light = np.linspace(0, 1, LEVELS)
    if transfer in (PQ, HLG):
        values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    else:
        values = light ** (1 / SDR_GAMMA)
    return (255 * values).round().astype(np.uint8)


@cache
def to_xyz(gamut: str) -> np.ndarray:
    """The matrix (3, 3) from linear RGB to CIE XYZ; its second row is the luminance."""
    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (*CHROMATICITIES[gamut], WHITE)])
    return xyz[:3].T * np.linalg.solve(xyz[:3].T, xyz[3])
