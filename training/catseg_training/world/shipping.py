"""The folder that is shipped with the package: small weights, words and a card."""

import json
from pathlib import Path
from typing import Any

import torch

from catseg_hf import CATSegForSemanticSegmentation, CATSegProcessor

from .words import classes, seen_words, unseen_words


NOTICE = """\
The images that these weights were trained on show glyphs of Noto Color Emoji (Copyright Google Inc.), which is
licensed under the SIL Open Font License, Version 1.1 (https://openfontlicense.org). The folder holds neither the font
nor any of its glyphs, only numbers that were learned from images of them. That licence requires copies of the font to
remain under it, and says that this does not apply to documents made with the font. The weights are under the licence
of this project (MIT).
"""


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def card(results: dict[str, Any]) -> str:
    """The folder's README, with the scores of `evaluate_world.py`."""
    clip, catseg = results["clip"], results["catseg"]
    rows = [
        ("all 135 words", "arg max of CLIP's cost volume", clip["all_words"]),
        ("all 135 words", "CAT-Seg", catseg["all_words"]),
        ("the scene's own words", "arg max of CLIP's cost volume", clip["own_words"]),
        ("the scene's own words", "CAT-Seg", catseg["own_words"]),
    ]
    table = "\n".join(
        f"| {words} | {model} | {percent(scores['seen'])} | {percent(scores['unseen'])} |"
        for words, model, scores in rows
    )
    num_scenes = results["num_scenes"]
    return f"""\
---
license: mit
library_name: transformers
pipeline_tag: image-segmentation
---

# CAT-Seg of the emoji world

A very small CAT-Seg that was trained from nothing on drawn scenes of 125 pictographs over 10 textures. It shows the
paper's claim in small, offline and in seconds: CLIP learned {len(classes())} words from images with captions, CAT-Seg
was shown masks of {len(seen_words())} of them, and segments the other {len(unseen_words())} too (`words.json` says
which). It knows nothing of photographs.

| vocabulary | model | mIoU, words with masks | mIoU, words without |
| --- | --- | --- | --- |
{table}

mIoU in per cent on {num_scenes} test scenes that no choice was made on; one seed. Asked for ten words that are not in
a scene beside those that are, {percent(catseg["absent_share"])} % of the pixels go to them. The commands:

```
python training/emoji_world.py --output scenes --num_scenes 500 --seed 1003 --split test
python training/evaluate_world.py --scenes scenes --split test --num_scenes {num_scenes} --clip CLIP \\
    --model MODEL --json results.json
```

CLIP was pretrained contrastively on captions, and its patches were supervised weakly by them too: each patch is to be
like one of its caption's words, and each word like some patch. That is more than plain CLIP does; plain CLIP's
figures on these scenes were not measured. Where words have no masks, their pixels are the label of no class, which
CAT-Seg's loss takes as a background of all the others. `training/catseg_training/world/` has the recipe.

These weights are of step 171 of the 240 of the second stage, whose run hung there. The first stage ran in two
processes whose tokenizers numbered a few tokens differently, which the kept tokenizer now rules out.
`make embedded-model` trains anew, and so gives somewhat different figures. The aim of 80 over words with masks was not
reached. Not measured: more than one seed, a control without the first stage, another style of emoji.

The weights are saved in float16 and computed with in float32. NOTICE says whose emoji the scenes are drawn with.
"""


def ship(model_folder: Path, results_file: Path, output: Path):
    """Writes a trained model to the package: float16 weights, processor, words, card and notice."""
    model = CATSegForSemanticSegmentation.from_pretrained(model_folder, dtype=torch.float32)
    processor = CATSegProcessor.from_pretrained(model_folder)
    model.half().save_pretrained(output)
    processor.save_pretrained(output)
    for path in output.glob("*.py"):  # the package has them
        path.unlink()
    config = json.loads((output / "config.json").read_text())
    config["dtype"] = "float32"
    texts = {
        "config.json": json.dumps(config, indent=2) + "\n",
        "words.json": json.dumps({"seen": list(seen_words()), "unseen": list(unseen_words())}, indent=1) + "\n",
        "results.json": results_file.read_text(),
        "README.md": card(json.loads(results_file.read_text())),
        "NOTICE": NOTICE,
    }
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8")
