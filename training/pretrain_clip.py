"""
Pretrains the small CLIP of the emoji world on scenes and their captions.

    python -m torch.distributed.run --nproc_per_node 2 training/pretrain_clip.py --output_dir clip
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from catseg_hf.errors import UserError, reports_errors
from catseg_training.arguments import json_object, positive
from catseg_training.workers import explained_ends_of_workers
from catseg_training.world.glyphs import FONT_FILE, EmojiFont, GlyphCache
from catseg_training.world.pretraining import Phase, PretrainingConfig, pretrain


RECIPE = Path(__file__).parent / "catseg_training" / "world" / "pretraining.json"


@reports_errors
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder for CLIP and its tokenizer; an unfinished run goes on"
    )
    parser.add_argument(
        "--recipe",
        type=json_object,
        default=str(RECIPE),
        metavar="JSON",
        help="JSON with the fields of PretrainingConfig",
    )
    parser.add_argument("--font", type=Path, default=FONT_FILE, help="NotoColorEmoji.ttf")
    parser.add_argument(
        "--seed", type=positive(int, or_zero=True), default=0, help="of scenes and weights (default: %(default)s)"
    )
    parser.add_argument(
        "--patch_weight",
        type=float,
        default=1.0,
        help="of the losses on patches; 0: plain CLIP, which learns from whole captions only",
    )
    parser.add_argument(
        "--mixed_precision",
        choices=["no", "bf16"],
        default="no",
        help="bf16: quicker on a processor with units for it; the losses stay in float32",
    )
    parser.add_argument(
        "--scenes",
        type=positive(float, or_zero=True),
        default=1.0,
        help="share of the recipe's scenes to train on; 0: the random weights that training starts from",
    )
    parser.add_argument(
        "--dataloader_num_workers",
        type=positive(int, or_zero=True),
        default=1,
        help="workers that draw scenes, for every process",
    )
    parser.add_argument(
        "--save_steps", type=positive(int), default=100, help="steps between checkpoints (default: %(default)s)"
    )
    parser.add_argument(
        "--validation_steps", type=positive(int), default=250, help="steps between validations (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        config = PretrainingConfig(
            **{**options.recipe, "phases": [Phase(**phase) for phase in options.recipe["phases"]]},
            seed=options.seed,
            patch_weight=options.patch_weight,
            mixed_precision=options.mixed_precision,
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"--recipe is no recipe ({type(error).__name__}: {error}): its fields are those of PretrainingConfig "
            "without `seed`, `patch_weight` and `mixed_precision`, and `phases` are objects with the fields of Phase."
        ) from error
    shares = [replace(phase, num_scenes=round(options.scenes * phase.num_scenes)) for phase in config.phases]
    with explained_ends_of_workers():
        pretrain(
            replace(config, phases=shares if options.scenes else []),
            options.output_dir,
            GlyphCache(EmojiFont(options.font)),
            options.save_steps,
            options.validation_steps,
            num_workers=options.dataloader_num_workers,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
