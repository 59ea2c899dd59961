"""Scenes as a dataset in folders, as train.py reads it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from catseg_hf.errors import UserError
from catseg_hf.utils.files import replaced_file

from .glyphs import GlyphCache
from .scenes import draw_scene
from .words import classes, seen_words, unseen_words


NO_CLASS = 255
MIN_SIZE = 4  # on fewer pixels nothing may be visible


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _write_text(path: Path, text: str):
    with replaced_file(path) as file:
        file.write_text(text, encoding="utf-8")


def write_scenes(
    output: Path,
    glyphs: GlyphCache,
    num_scenes: int,
    seed: int,
    split: str = "train",
    size: int = 128,
    hide_unseen: bool = False,
):
    """
    Writes `images/SPLIT`, `labels/SPLIT` (ids in the order of `classes.json`, 255 for no class), `captions.jsonl`,
    `classes.json` (all words), `words.json` (which of them are seen and unseen) and `seen.json` (the seen ones alone).
    Other splits that are there already stay, and must have the same words.

    Args:
        output (`Path`): The dataset's folder.
        glyphs (`GlyphCache`): Draws the things.
        num_scenes (`int`), seed (`int`), size (`int`): How many scenes, of which random numbers, and their side.
        split (`str`): What the part is called.
        hide_unseen (`bool`): Whether the pixels of words without masks have no class.

    A killed run leaves no split; the next one clears what is left of it.

    Raises:
        UserError: If the split's name is no folder's, `size` is below `MIN_SIZE`, the split is there already, or
            `output` holds something other than scenes of these words. Nothing is written then.
    """
    if split in ("", "..") or Path(split).name != split:
        raise UserError(f"--split {split!r} must name a folder, such as train, validation or test.")
    if size < MIN_SIZE:
        raise UserError(f"--size {size} is too small for a scene: give at least {MIN_SIZE} pixels.")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file: name a folder.")
    texts = {
        "classes.json": list(classes()),
        "words.json": {"seen": list(seen_words()), "unseen": list(unseen_words())},
        "seen.json": list(seen_words()),
    }
    if output.is_dir() and any(output.iterdir()):
        if (output / "images" / split).exists():
            raise UserError(
                f"{output} has a split {split!r} already: name another with --split, or remove the folder."
            )
        if not (output / "classes.json").is_file():
            raise UserError(f"--output {output} holds something other than scenes: name another folder.")
        if (output / "classes.json").read_text(encoding="utf-8") != _json(texts["classes.json"]):
            raise UserError(f"{output} has scenes of other words (classes.json): name another folder.")
    hidden = [classes().index(word) for word in unseen_words()] if hide_unseen else []
    unfinished = output.with_name(f".{output.name}.{split}.incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)
    for kind in ("images", "labels"):
        (unfinished / kind).mkdir(parents=True)
    lines = []
    for index in tqdm(range(num_scenes), unit="scene", disable=None):
        scene = draw_scene(glyphs, seed, index, size)
        labels = np.where(np.isin(scene.labels, hidden), NO_CLASS, scene.labels).astype(np.uint8)
        name = f"{index:06}.png"
        Image.fromarray(scene.image).save(unfinished / "images" / name)
        Image.fromarray(labels).save(unfinished / "labels" / name)
        lines.append({"image": f"images/{split}/{name}", "caption": scene.caption, "words": scene.words})
    captions = output / "captions.jsonl"
    before = captions.read_text().splitlines() if captions.exists() else []
    others = [line for line in map(json.loads, before) if not line["image"].startswith(f"images/{split}/")]
    output.mkdir(parents=True, exist_ok=True)
    for name, value in texts.items():
        _write_text(output / name, _json(value))
    _write_text(captions, "".join(json.dumps(line) + "\n" for line in others + lines))
    for kind in ("labels", "images"):  # the images last: with them the split is there
        (output / kind).mkdir(exist_ok=True)
        shutil.rmtree(output / kind / split, ignore_errors=True)
        os.replace(unfinished / kind, output / kind / split)
    unfinished.rmdir()
