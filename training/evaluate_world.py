"""Scores models on scenes of the emoji world.

python training/evaluate_world.py --scenes DIR --split test --clip CLIP --model CATSEG --json results.json
"""

import argparse
import sys
from pathlib import Path

import torch

from catseg_training.arguments import positive
from catseg_training.world.evaluation import evaluate_catseg, evaluate_clip, read_scenes, write_evaluation


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, metavar="DIR", help="what emoji_world.py wrote")
    parser.add_argument("--split", default="test", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--num_scenes", type=positive(int), metavar="N", help="the first N only")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="what pretrain_clip.py wrote")
    parser.add_argument("--model", type=Path, metavar="DIR", help="what train.py wrote")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the scores go")
    options = parser.parse_args(arguments)
    images, labels = read_scenes(options.scenes, options.split, options.num_scenes)
    results = {"num_scenes": len(images)}
    if options.clip is not None:
        results["clip"] = evaluate_clip(options.clip, images, labels)
        write_evaluation(options.json, results)
    if options.model is not None:
        results["catseg"] = evaluate_catseg(options.model, images, labels, getattr(torch, options.dtype))
    write_evaluation(options.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
