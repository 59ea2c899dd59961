"""Writes the loss and the gradient norm of every step of a short training, and compares two such curves.

    PYTHONPATH=training python benchmarks/loss_curves.py write --mixed_precision bf16 --json bf16.json
    PYTHONPATH=training python benchmarks/loss_curves.py compare benchmarks/results/loss_curves/bf16.json bf16.json

What is trained is an aggregator and a decoder with random weights on the CLIP of the model that comes with the
package, on the tests' scenes of the emoji world, from a fixed seed. Exit status of `compare`: 0 if the curves agree
within the tolerance of their precisions, 1 if not. Rounding differs between processors and versions of torch and grows
with the steps, so that each file names both.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from catseg_hf import EMBEDDED_MODEL, CATSegForSemanticSegmentation, CATSegProcessor
from catseg_hf.errors import UserError, reports_errors
from catseg_training.processes import usable_precision
from catseg_training.world.words import classes
from measure import ROOT, machine, write_json


CURVES = ("loss", "grad_norm")
# Of a training, which two curves must have in common to be compared.
OPTIONS = ("steps", "batch_size", "seed")
# Largest differences, of each curve's mean: between machines in float32, and between bf16 and either precision.
TOLERANCES = {"no": {"loss": 1e-3, "grad_norm": 1e-2}, "bf16": {"loss": 2e-2, "grad_norm": 1e-1}}


def train(mixed_precision: str, num_steps: int, batch_size: int, seed: int) -> dict:
    """
    A short run of train.py: its precision, length and seed, what it ran on, and the curves, a number a step.

    Raises:
        UserError: If train.py would train in another precision here.
    """
    if usable_precision(mixed_precision) != mixed_precision:
        raise UserError(
            f"train.py does not train in {mixed_precision} on this processor, but in float32: write the curves of "
            "--mixed_precision no here, and these on another machine."
        )
    with tempfile.TemporaryDirectory() as folder:
        clip, vocabulary, output = (Path(folder) / name for name in ("clip", "classes.json", "trained"))
        CATSegForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL).clip.save_pretrained(clip)
        CATSegProcessor.from_pretrained(EMBEDDED_MODEL).tokenizer.save_pretrained(clip)
        vocabulary.write_text(json.dumps(list(classes())))
        options = {
            "clip_model_name_or_path": clip,
            "config_overrides": ROOT / "training" / "catseg_training" / "world" / "catseg.json",
            "prior_probability": 0.05,
            "dataset_name": ROOT / "tests" / "fixtures" / "emoji_world",
            "train_split": "gate",
            "vocabulary": vocabulary,
            "classes_per_step": 20,
            "crop_size": 128,
            "learning_rate": 2e-3,
            "per_device_train_batch_size": batch_size,
            "max_train_steps": num_steps,
            "num_warmup_steps": num_steps // 4,
            "logging_steps": 1,
            "dataloader_num_workers": 0,
            "mixed_precision": mixed_precision,
            "seed": seed,
            "output_dir": output,
        }
        command = [sys.executable, ROOT / "training" / "train.py", "--no-color_jitter", "--skip_evaluation"]
        command += [f"--{name}={value}" for name, value in options.items()]
        subprocess.run(command, check=True, stdout=sys.stderr)
        history = json.loads((output / "training_state.json").read_text())["history"]
    return {
        "mixed_precision": mixed_precision,
        "steps": num_steps,
        "batch_size": batch_size,
        "seed": seed,
        "machine": machine("cpu"),
        "torch": torch.__version__,
        **{name: [entry[name] for entry in history] for name in CURVES},
    }


def compare(expected: dict, actual: dict) -> list[str]:
    """
    What keeps two curves, as `train` gives them, from being the same: a line for each; none if they agree.

    Raises:
        UserError: If they are not of the same training.
    """
    for name in OPTIONS:
        if expected[name] != actual[name]:
            raise UserError(
                f"The curves are of different trainings: {name} is {expected[name]} in one and {actual[name]} in the "
                "other. Write both with the same options; only --mixed_precision may differ."
            )
    tolerances = TOLERANCES["bf16" if "bf16" in (expected["mixed_precision"], actual["mixed_precision"]) else "no"]
    lines = []
    for name in CURVES:
        before, now = torch.tensor(expected[name]), torch.tensor(actual[name])
        differences = (now - before).abs() / before.abs().mean()
        step = int(differences.nan_to_num(torch.inf).argmax())
        if not differences[step] <= tolerances[name]:
            lines.append(
                f"{name} of step {step + 1} is {now[step]:.6g} instead of {before[step]:.6g}: they differ by "
                f"{differences[step]:.2g} of the mean, more than {tolerances[name]:g}."
            )
    return lines


def read_curves(path: Path) -> dict:
    try:
        curves = json.loads(path.read_text(encoding="utf-8"))
        lengths = {len(curves[name]) for name in CURVES}
        missing = {"mixed_precision", *OPTIONS} - curves.keys()
    except (AttributeError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no curves ({error}): write them with `loss_curves.py write`.") from None
    if missing:
        raise UserError(f"{path} does not say {', '.join(sorted(missing))} of its training: write it again.")
    if lengths != {curves["steps"]}:
        raise UserError(f"{path} has not one number of each curve for each of its steps: write it again.")
    return curves


@reports_errors
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="train and write the curves")
    write.add_argument("--mixed_precision", choices=TOLERANCES, default="no", help="of train.py (%(default)s)")
    write.add_argument("--steps", type=int, default=20, help="of the training (%(default)s)")
    write.add_argument("--batch_size", type=int, default=2, help="scenes a step (%(default)s)")
    write.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    write.add_argument("--json", type=Path, help="file for the curves")
    compared = commands.add_parser("compare", help="compare two files of curves")
    compared.add_argument("expected", type=Path)
    compared.add_argument("actual", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "write":
        write_json(train(options.mixed_precision, options.steps, options.batch_size, options.seed), options.json)
        return 0
    lines = compare(read_curves(options.expected), read_curves(options.actual))
    print("\n".join(lines) or "The curves agree.")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
