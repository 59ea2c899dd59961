"""Puts a trained model of the emoji world where the package ships it: the weights, and then a card with its scores.

python training/ship_world_model.py --output src/catseg_hf/embedded_model --model CATSEG
python training/ship_world_model.py --output src/catseg_hf/embedded_model --results results.json
"""

import argparse
import sys
from pathlib import Path

from catseg_hf.errors import UserError, reports_errors
from catseg_training.arguments import json_object
from catseg_training.world.shipping import write_card, write_half


@reports_errors
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="what train.py wrote")
    parser.add_argument("--results", type=json_object, metavar="FILE", help="what evaluate_world.py wrote")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.model is None and options.results is None:
        parser.error("give --model, --results or both")
    if options.model is not None and not options.model.is_dir():
        raise UserError(f"--model {options.model} is no folder: give the one that train.py wrote.")
    if options.results is not None and "catseg" not in options.results:
        raise UserError("--results has no scores called 'catseg': run training/evaluate_world.py --name catseg.")
    if options.model is not None:
        write_half(options.model, options.output)
    if options.results is not None:
        write_card(options.results, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
