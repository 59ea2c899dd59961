"""Small images of all kinds that people have in one folder: formats, modes, depths, orientations and sizes."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


ORIENTATION = 0x112
WORDS = ["grass", "water", "snow"]


def mixed_images(count: int) -> dict[str, bytes]:
    """The files of `count` images by their names; every 10th from the 5th on is damaged."""
    files = {}
    for index in range(count):
        suffix, content = _encode(index)
        files[f"{index:03d}{suffix}"] = content[: len(content) // 3] if index % 10 == 5 else content
    return files


def write_mixed_images(folder: Path, count: int):
    for name, content in mixed_images(count).items():
        (folder / name).write_bytes(content)


def _encode(index: int) -> tuple[str, bytes]:
    """An image of a kind by its number."""
    generator = np.random.default_rng(index)
    blocks = generator.integers(256, size=(3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((24 + index % 7, 18 + index % 5), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    kinds = [
        (".jpg", image, {"exif": exif}),
        (".png", image.convert("P", palette=Image.Palette.ADAPTIVE, colors=13), {}),
        (".webp", image, {"lossless": True}),
        (".jpeg", image.convert("L"), {}),
        (".PNG", Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), {}),
        (".png", image, {}),
        (".gif", image.convert("P"), {}),
        (".png", image.convert("RGBA"), {}),
        (".tif", image.convert("CMYK"), {}),
        (".bmp", image.convert("1"), {}),
        (".jpg", image.convert("CMYK"), {}),
        (".webp", image.convert("RGBA"), {"quality": 80}),
        (".png", image.convert("LA"), {}),
    ]
    suffix, image, options = kinds[index % len(kinds)]
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[suffix.lower()], **options)
    return suffix, file.getvalue()


def save_quick_model(folder: Path) -> Path:
    """The embedded model without its sliding window, for tests of what goes on around it."""
    from catseg_hf import EMBEDDED_MODEL, CATSegForSemanticSegmentation, CATSegProcessor

    model, processor = (
        kind.from_pretrained(EMBEDDED_MODEL) for kind in (CATSegForSemanticSegmentation, CATSegProcessor)
    )
    model.config.sliding_window = processor.image_processor.sliding_window = False
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
