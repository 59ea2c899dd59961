"""Strategies for images: all kinds that users pass, most of them odd, and files of them that are damaged."""

from io import BytesIO
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import ExifTags, Image

from fuzzing.damage import damaged_bytes
from fuzzing.vocabularies import mostly


BYTES_PER_PIXEL = {
    **dict.fromkeys(["L", "P"], 1),
    **dict.fromkeys(["LA", "La", "PA", "I;16", "I;16L", "I;16B"], 2),
    **dict.fromkeys(["RGB", "YCbCr", "HSV", "LAB"], 3),
    **dict.fromkeys(["RGBA", "RGBa", "RGBX", "CMYK", "I", "F"], 4),
}
ARRAY_TYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", ">u2", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", ">f4", "float64", "longdouble", "complex64", "object", "U1", "datetime64[s]"),
]
TENSOR_TYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn),
]
FORMATS = {
    **{"PNG": "L LA P RGB RGBA I;16", "JPEG": "L RGB CMYK", "GIF": "L P", "BMP": "L RGB", "WEBP": "RGB RGBA"},
    **{"TIFF": "L RGB RGBA F I;16 CMYK", "PPM": "L RGB I;16", "TGA": "L RGB RGBA", "ICO": "RGBA", "PCX": "L RGB"},
}
RANGES = [(0, 255), (0, 1), (0, 65535), (-1, 1), (-300, 300), (0, 1e-30), (-1e38, 1e38), (7, 7)]

sides = st.integers(1, 300) | st.integers(1, 3) | st.sampled_from([1, 299, 300])
seeds = st.integers(0, 2**32 - 1)


@st.composite
def pil_images(draw: st.DrawFn, modes: list[str] | None = None, sides: st.SearchStrategy[int] = sides) -> Image.Image:
    """Noise in any mode; with a palette's transparency and an orientation that may make no sense."""
    mode = draw(st.sampled_from(modes or ["1", *BYTES_PER_PIXEL]))
    width, height = draw(sides), draw(sides)
    count = -(-width // 8) * height if mode == "1" else BYTES_PER_PIXEL[mode] * width * height
    image = Image.frombytes(mode, (width, height), np.random.default_rng(draw(seeds)).bytes(count))
    if mode in ("P", "PA"):
        image.putpalette(draw(st.binary(min_size=3, max_size=768).map(lambda colors: colors[: len(colors) // 3 * 3])))
    if draw(st.booleans()):
        transparency = st.integers(-1, 300) | st.binary(max_size=300) | st.tuples(*[st.integers(0, 255)] * 3)
        image.info["transparency"] = draw(transparency)
    if draw(st.booleans()):
        image.getexif()[ExifTags.Base.Orientation] = draw(st.integers(0, 9) | st.text(max_size=3))
    return image


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    channels = st.sampled_from([3, 3, 3, 4, 1, 2, 0, 5])
    return st.one_of(
        st.tuples(sides, sides),
        st.tuples(sides, sides, channels),
        st.tuples(channels, sides, sides),
        st.lists(st.integers(0, 4), max_size=5).map(tuple),
    )


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray | torch.Tensor:
    """Arrays and tensors of any type, shape, memory layout and range of values."""
    shape = draw(shapes())
    low, high = draw(st.sampled_from(RANGES))
    numbers = np.random.default_rng(draw(seeds)).uniform(low, high, shape)
    if numbers.size and draw(st.booleans()):
        numbers.flat[draw(st.integers(0, numbers.size - 1))] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.5]))
    with np.errstate(all="ignore"):
        if draw(st.booleans()):
            tensor = torch.from_numpy(np.asarray(numbers)).to(draw(st.sampled_from(TENSOR_TYPES)))
            is_float = tensor.is_floating_point()
            return tensor.requires_grad_() if is_float and draw(st.booleans()) else tensor
        kind = draw(st.sampled_from(ARRAY_TYPES))
        integers = np.nan_to_num(numbers).clip(-(2.0**62), 2.0**62).astype(np.int64)
        array = integers.astype(kind) if kind.startswith("datetime") else np.asarray(numbers).astype(kind)
    layout = draw(st.sampled_from(["C", "Fortran", "reversed", "read-only"])) if shape else "C"
    if layout == "Fortran":
        array = np.asfortranarray(array)
    elif layout == "reversed":
        array = array[tuple(slice(None, None, -1) for _ in shape)]
    elif layout == "read-only":
        array.flags.writeable = False
    return array


def images() -> st.SearchStrategy[Any]:
    """Images, and now and then something that is none."""
    others = st.none() | st.integers() | st.text(max_size=20) | st.just(set()) | st.just(object())
    return mostly(pil_images() | arrays(), others)


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    """Files of all usual formats, most of them damaged."""
    form = draw(st.sampled_from(list(FORMATS)))
    image = draw(pil_images(FORMATS[form].split(), sides=st.integers(1, 40)))
    image.info.pop("transparency", None)
    buffer = BytesIO()
    image.save(buffer, form)
    data = buffer.getvalue()
    return draw(damaged_bytes(data)) if draw(st.integers(0, 9)) else data
