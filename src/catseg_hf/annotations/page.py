"""A page of pictures with their labels in colour and the counts of each class, to see a wrong mapping at once."""

import base64
import io
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import UserError, printable
from ..image_io_catseg import open_image
from ..visualization import class_color, draw_segmentation


if TYPE_CHECKING:
    from .preparation import Prepared


PAGE = "index.html"
# Of pictures: how many, and how large in pixels.
MAX_PICTURES, PICTURE_SIZE = 40, 640
_STYLE = """body { font: 15px sans-serif; margin: 2em } td, th { padding: 2px 10px; text-align: right }
td.name { text-align: left } span { display: inline-block; width: 1em; height: 1em; border: 1px solid #888 }
figure { display: inline-block; margin: 0 1em 1em 0 }"""


def write_page(folder: Path, source: Path, prepared: "Prepared"):
    """Writes the page of what lies in a folder: for each class the image that shows most of it."""
    lines = [
        "<!DOCTYPE html>",
        f"<html><head><meta charset='utf-8'><title>{_text(source.name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(source.name)}</h1>",
        f"<p>{_text(prepared.source_format.title)}. {_text(describe_splits(prepared))}. Pixels of no class are "
        f"{prepared.no_class} in the label maps.</p>",
        *_class_table(prepared),
        *_reports("Lost", prepared.report.problems),
        *_reports("Remarks", prepared.report.remarks),
        *_pictures(folder, prepared),
        "</body></html>",
    ]
    (folder / PAGE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def describe_splits(prepared: "Prepared") -> str:
    """How many images there are, such as "8 images (train 6, validation 2)"."""
    total = sum(prepared.num_images.values())
    splits = ", ".join(f"{split} {count:,}" for split, count in prepared.num_images.items())
    return f"{total:,} image{'s' * (total != 1)} ({splits})"


def _text(text: str) -> str:
    return escape(printable(text))


def _class_table(prepared: "Prepared") -> Iterator[str]:
    yield "<table><tr><th>id</th><th></th><th>class</th><th>images</th><th>pixels</th><th>share</th></tr>"
    total = max(int(prepared.pixels.sum()), 1)
    for index, name in enumerate(prepared.classes):
        pixels, images = int(prepared.pixels[index]), int(prepared.images[index])
        color = "#{:02x}{:02x}{:02x}".format(*class_color(index))
        yield (
            f"<tr><td>{index}</td><td><span style='background:{color}'></span></td><td class='name'>{_text(name)}</td>"
            f"<td>{images:,}</td><td>{pixels:,}</td><td>{pixels / total:.1%}</td></tr>"
        )
    yield "</table>"


def _reports(title: str, reports: dict[str, list[str]]) -> Iterator[str]:
    if reports:
        yield f"<h2>{title}</h2>"
    for kind, items in reports.items():
        yield f"<details><summary>{len(items):,} {_text(kind)}</summary><ul>"
        yield from (f"<li>{_text(item)}</li>" for item in items)
        yield "</ul></details>"


def _pictures(folder: Path, prepared: "Prepared") -> Iterator[str]:
    shown = dict.fromkeys(paths for _, paths in sorted((index, best[1:]) for index, best in prepared.pictures.items()))
    labels = dict(enumerate(prepared.classes))
    for image_path, label_path in list(shown)[:MAX_PICTURES]:
        try:
            image = open_image(folder / image_path).convert("RGB")
        except (OSError, UserError) as error:
            yield f"<p>{_text(image_path)}: {_text(str(error))}</p>"
            continue
        with Image.open(folder / label_path) as stored:
            ratio = min(1, PICTURE_SIZE / max(image.size))
            size = tuple(max(1, round(length * ratio)) for length in image.size)
            ids = np.asarray(stored.resize(size, Image.Resampling.NEAREST)).astype(np.int64)
        ids[ids == prepared.no_class] = -1
        picture = io.BytesIO()
        draw_segmentation(image.resize(size), ids, labels).save(picture, "JPEG", quality=85)
        data = base64.b64encode(picture.getvalue()).decode()
        yield f"<figure><img src='data:image/jpeg;base64,{data}'><figcaption>{_text(label_path)}</figcaption></figure>"
