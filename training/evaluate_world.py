"""Scores models on scenes of the emoji world.

  python training/evaluate_world.py --scenes DIR --clip CLIP --name clip --json results.json
  python training/evaluate_world.py --scenes DIR --model CATSEG --name catseg --json results.json

Every run adds its scores to the file, under the name that `--name` gives.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from catseg_hf.commands.model_options import MODEL_HELP
from catseg_hf.errors import reports_errors
from catseg_hf.guided_upsampling_catseg import UPSAMPLINGS
from catseg_training.arguments import positive
from catseg_training.world.evaluation import (
    Segmenter,
    evaluate_all_words,
    evaluate_catseg,
    evaluate_clip,
    read_scenes,
    write_evaluation,
)


@reports_errors
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, metavar="DIR", help="what emoji_world.py wrote")
    parser.add_argument("--split", default="test", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--num_scenes", type=positive(int), metavar="N", help="the first N only")
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--clip", type=Path, metavar="DIR", help="what pretrain_clip.py wrote: its arg max is scored")
    models.add_argument("--model", metavar="NAME_OR_DIR", help=MODEL_HELP)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sliding_window", action="store_true", help="look at windows of the enlarged scene")
    parser.add_argument("--upsampling", choices=UPSAMPLINGS, default="bilinear", help="(default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--all_words_only", action="store_true", help="leave out the scene's own and absent words")
    parser.add_argument("--name", required=True, help="what the scores are called in the file")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the scores go")
    options = parser.parse_args(arguments)
    if options.clip is not None and options.upsampling != "bilinear":
        parser.error("--upsampling guided needs --model")
    images, labels = read_scenes(options.scenes, options.split, options.num_scenes)
    if options.clip is not None:
        scores = evaluate_clip(options.clip, images, labels)
    else:
        dtype = getattr(torch, options.dtype)
        segment = Segmenter(options.model, dtype, options.sliding_window, options.compile, options.upsampling)
        if options.all_words_only:
            scores = {"all_words": evaluate_all_words(segment, images, labels)}
        else:
            scores = evaluate_catseg(segment, images, labels)
    results = json.loads(options.json.read_text()) if options.json.exists() else {}
    how = {} if options.upsampling == "bilinear" else {"upsampling": options.upsampling}
    results[options.name] = {"num_scenes": len(images), **how, **scores}
    write_evaluation(options.json, results)
    print(json.dumps({options.name: results[options.name]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
