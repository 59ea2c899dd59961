"""The folder that is shipped with the package: small weights, words and a card."""

import json
from pathlib import Path
from typing import Any

import torch

from catseg_hf import CATSegForSemanticSegmentation, CATSegProcessor
from catseg_hf.utils.files import replaced_together

from .words import backgrounds, classes, seen_words, things, unseen_words


NOTICE = """\
The images that these weights were trained on show glyphs of Noto Color Emoji (Copyright 2013-2017 Google Inc. and
Arjen Nienhuis), which is licensed under the SIL Open Font License, Version 1.1 (https://openfontlicense.org). The
folder holds neither the font nor any of its glyphs, only numbers that were learned from images of them. That licence
requires copies of the font to remain under it, and says that this does not apply to documents made with the font. The
weights are under the licence of this project (MIT).
"""


ROWS = (
    ("clip", "arg max of CLIP's cost volume, before any mask"),
    ("plain_clip", "the same with plain CLIP, which learned from whole captions only"),
    ("clip_two_cores", "the arg max of a CLIP that was pretrained on two CPU cores"),
    ("catseg", "CAT-Seg"),
    ("catseg_seed_2", "CAT-Seg, another seed of the second stage"),
    ("catseg_seed_3", "CAT-Seg, a third"),
    ("catseg_two_cores", "CAT-Seg, both stages trained on two CPU cores"),
    ("catseg_without_pretraining", "CAT-Seg on a CLIP with random weights"),
    ("other_scenes", "CAT-Seg, scenes of a further seed, drawn and scored once after all else"),
    ("sliding_window", "CAT-Seg, sliding window"),
    ("guided", "CAT-Seg, guided upsampling"),
    ("bfloat16", "CAT-Seg, bfloat16"),
    ("compiled", "CAT-Seg, compiled"),
    ("other_style", "CAT-Seg, scenes drawn from Fluent emoji, a style it never saw"),
)


def _percent(scores: dict[str, float] | None, kind: str) -> str:
    return "" if scores is None else f"{100 * scores[kind]:.1f}"


def results_table(results: dict[str, Any]) -> str:
    """The scores of `evaluate_world.py` as a Markdown table, mIoU in per cent."""
    lines = [
        "| model | all words: with masks | without | the scene's own words: with masks | without |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, description in ROWS:
        if name in results:
            cells = [
                _percent(results[name].get(vocabulary), kind)
                for vocabulary in ("all_words", "own_words")
                for kind in ("seen", "unseen")
            ]
            lines.append(f"| {description} | {' | '.join(cells)} |")
    return "\n".join(lines)


def card(results: dict[str, Any]) -> str:
    """The folder's README, with the scores of `evaluate_world.py`."""
    return f"""\
---
license: mit
library_name: transformers
pipeline_tag: image-segmentation
---

# CAT-Seg of the emoji world

A very small CAT-Seg that was trained from nothing on drawn scenes of {len(things())} pictographs over
{len(backgrounds())} textures. It shows the paper's claim in small, offline and in seconds: CLIP learned
{len(classes())} words from images with captions, CAT-Seg was shown masks of {len(seen_words())} of them, and segments
the other {len(unseen_words())} as well (`words.json` says which). It knows nothing of photographs.

mIoU in per cent on {results["catseg"]["num_scenes"]} test scenes, over words with masks and words without:

{results_table(results)}

The recipe was chosen on validation scenes; all scenes are drawn by the same rules from different seeds. Scored is the
arg max of logits that were resized to the scene. The pipeline resizes probabilities, as the paper's evaluation does,
which gave 0.2 points less on the tests' 100 scenes (`pytest -m slow -rP tests/pipeline/test_refinement.py`). Asked for
ten words that are not in a scene beside those that are, CAT-Seg gives them
{100 * results["catseg"]["absent_share"]:.3f} % of the pixels. Commands, from the repository:

```
make embedded-model           # trains both stages, scores the model and writes this folder
make embedded-model-controls  # the other rows
```

CLIP was pretrained contrastively on captions, and its patches were supervised weakly by them too: each patch is to be
like one of its caption's words, and each word like some patch. The class token learned the caption's single words,
too. All this is more than plain CLIP does. In the second stage the pixels of words without masks are the label of no
class, which CAT-Seg's loss takes as a background of all the others. `training/catseg_training/world/` has the recipe.
{results.get("provenance", "")}
The weights are saved in float16 and computed with in float32; the scores are those of the weights as saved. NOTICE
says whose emoji the scenes are drawn with.
"""


def write_half(model_folder: Path, output: Path):
    """Writes a trained model as it is shipped: float16 weights, processor, words and notice."""
    model = CATSegForSemanticSegmentation.from_pretrained(model_folder, dtype=torch.float32)
    processor = CATSegProcessor.from_pretrained(model_folder)
    with replaced_together(output) as folder:
        model.half().save_pretrained(folder)
        processor.save_pretrained(folder)
        _complete(folder)


def _complete(folder: Path):
    """Leaves out the code, which the package has, and adds what a shipped folder has beside a saved one."""
    for path in folder.glob("*.py"):
        path.unlink()
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    texts = {
        "config.json": json.dumps(config, indent=2) + "\n",
        "words.json": json.dumps({"seen": list(seen_words()), "unseen": list(unseen_words())}, indent=1) + "\n",
        "NOTICE": NOTICE,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def write_card(results: dict[str, Any], output: Path):
    """Writes the scores of `evaluate_world.py` and a card with them beside the weights."""
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (output / "README.md").write_text(card(results), encoding="utf-8")
