"""What people take away: files, and the code that makes them."""

import json
from pathlib import Path
from typing import Any

from catseg_hf import EMBEDDED_MODEL, VOCABULARIES, load_vocabulary
from catseg_hf.class_words_catseg import BAR
from catseg_hf.hub.released_weights import VARIANTS
from catseg_hf.images.results import draw_label_map
from catseg_hf.visualization import draw_segmentation

from .labels import format_labels, parse_labels
from .segmentation import EMBEDDED, Segmentation


def summarize(result: Segmentation) -> dict[str, Any]:
    """What was asked for and the segments that were found, for JSON."""
    return {
        "model": EMBEDDED if result.model == EMBEDDED_MODEL else result.model,
        "width": result.image.width,
        "height": result.image.height,
        "threshold": result.threshold,
        "sliding_window": result.sliding_window,
        "sam": result.sam,
        "upsampling": result.upsampling,
        "tile_size": result.tile_size,
        "tile_overlap": result.tile_overlap if result.tile_size else None,
        "labels": result.labels,
        **result.classes.described(),
        "segments": result.segments,
    }


def write_files(result: Segmentation, opacity: float, folder: Path) -> list[Path]:
    """
    Writes the result in the image's full size.

    Returns:
        Paths in `folder` of the class of every pixel as a PNG, with 255 (65535 if there are more classes) for none; of
        the summary as JSON; and of the overlay with a legend as a PNG.
    """
    segmentation = result.segmentation.long()
    label_map, no_class = draw_label_map(segmentation, len(result.labels), bool((segmentation < 0).any()))
    paths = [folder / name for name in ("labels.png", "segments.json", "overlay.png")]
    label_map.save(paths[0])
    paths[1].write_text(json.dumps({**summarize(result), "no_class": no_class}, indent=2) + "\n", encoding="utf-8")
    draw_segmentation(result.image, segmentation, result.labels, opacity).save(paths[2])
    return paths


def python_code(result: Segmentation, opacity: float) -> str:
    """A program that segments `image.jpg` as it was segmented here and saves the overlay."""
    classes = result.classes
    given = [BAR.join(classes.words_of(index)) for index in range(len(classes.names))]
    presets = {name: parse_labels(format_labels(load_vocabulary(name))) for name in VOCABULARIES}
    vocabulary = next((name for name, names in presets.items() if names == given), None)
    labels = _as_code(given) if vocabulary is None else f'load_vocabulary("{vocabulary}")'
    background = ""
    if classes.has_background:
        background = f"\n    background_labels={_as_code(classes.words_of(-1))},"
    names_of = "labels" if given == classes.names else '[label.split("|")[0] for label in labels]'
    model, names = json.dumps(result.model), []
    if result.model == EMBEDDED_MODEL:
        model, names = "EMBEDDED_MODEL", ["EMBEDDED_MODEL"]
    elif result.model in VARIANTS:
        model, names = f"pretrained({model})", ["pretrained"]
    names = sorted([*names, *["load_vocabulary"] * (vocabulary is not None)])
    imports = f"from catseg_hf import {', '.join(names)}" if names else "import catseg_hf  # registers CAT-Seg"
    sam_import = sam = ""
    if result.sam:
        sam_import = "\nfrom catseg_hf.loading import load_mask_generator"
        sam = f"\n    mask_generator=load_mask_generator({json.dumps(result.sam)}),"
    upsampling = f"\n    upsampling={json.dumps(result.upsampling)}," if result.upsampling != "bilinear" else ""
    tiles = ""
    if result.tile_size:
        tiles = f"\n    tile_size={result.tile_size},\n    tile_overlap={result.tile_overlap},"
    return f"""\
from transformers import pipeline

{imports}
from catseg_hf.image_io_catseg import open_image{sam_import}
from catseg_hf.visualization import draw_segmentation


segmenter = pipeline("zero-shot-image-segmentation", model={model})
image = open_image("image.jpg").convert("RGB")
labels = {labels}
result = segmenter(
    image,
    candidate_labels=labels,{background}
    threshold={result.threshold},
    sliding_window={result.sliding_window},{sam}{upsampling}{tiles}
    return_segmentation_map=True,
)
for segment in result["segments"]:
    print(segment["label"], segment["score"])
draw_segmentation(image, result["segmentation"], {names_of}, opacity={opacity}).save("overlay.png")
"""


def _as_code(labels: list[str]) -> str:
    return json.dumps(labels, ensure_ascii=False)
