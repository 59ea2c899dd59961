"""Puts a trained model of the emoji world where the package ships it.

python training/ship_world_model.py --model CATSEG --results results.json --output src/catseg_hf/embedded_model
"""

import argparse
import sys
from pathlib import Path

from catseg_training.world.shipping import ship


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="what train.py wrote")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="what evaluate_world.py wrote")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    ship(options.model, options.results, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
