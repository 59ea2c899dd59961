"""Times this build beside an earlier commit, in one process, the two taking turns.

    OMP_NUM_THREADS=1 PYTHONPATH=training python benchmarks/builds.py --baseline 16adf11 --json result.json

Seconds are those that the process's threads computed (`time.process_time`), which other programs on the machine change
little, and medians; a ratio is the median of those of two runs that followed each other. Memory is counted beyond the
weights. Differences are those of the logits, where all classes have one. Margins mean nothing to random weights, so
that what `max_classes_per_image="auto"` keeps is a number of classes for each of its stages.
"""

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch

from catseg_hf.class_selection_catseg import ClassSelection, sample_weights, shortfalls
from catseg_hf.configuration_catseg import SELECTION_STAGES
from catseg_training.attention import choose_attention
from catseg_training.model import recompute_activations
from measure import ARCHITECTURES, ROOT, build_model, cpu_seconds, machine, peak_memory, random_inputs, write_json
from training_step import TrainingSteps


@dataclass(frozen=True)
class Case:
    """
    What is timed.

    Args:
        name (`str`): For the table.
        num_classes (`int`): Size of the vocabulary.
        dtype (`torch.dtype`): Of the weights, or in training of what autocast computes in.
        trains (`bool`): Whether it is a training step, and not a crop.
        recomputes (`bool`, *optional*): In training, `recompute_activations`' argument.
        kept (`tuple[int, ...]`, *optional*): Classes that this build has left for the first layer, further layers and
            the decoder; the earlier one has all.
    """

    name: str
    num_classes: int
    dtype: torch.dtype = torch.float32
    trains: bool = False
    recomputes: bool | None = None
    kept: tuple[int, ...] | None = None

    @property
    def mixed_precision(self) -> str:
        return "bf16" if self.dtype == torch.bfloat16 else "no"


CASES = {
    "crop_171": Case("one crop, 171 classes, float32", 171),
    "crop_171_bfloat16": Case("one crop, 171 classes, bfloat16", 171, torch.bfloat16),
    "crop_847_bfloat16": Case("one crop, 847 classes, bfloat16", 847, torch.bfloat16),
    "auto_171": Case("one crop, 171 classes, float32, auto", 171, kept=(48, 32, 16)),
    "auto_847": Case("one crop, 847 classes, float32, auto", 847, kept=(48, 32, 16)),
    "training_171": Case("training step, 171 classes, float32", 171, trains=True),
    "training_171_autocast": Case("training step, 171 classes, bf16 autocast", 171, torch.bfloat16, trains=True),
    "checkpointing_171": Case("training step, checkpointing, float32", 171, trains=True, recomputes=True),
    "checkpointing_171_autocast": Case(
        "training step, checkpointing, bf16 autocast", 171, torch.bfloat16, trains=True, recomputes=True
    ),
}


def load_model_class(source: Path, name: str) -> type[torch.nn.Module]:
    """`CATSegForSemanticSegmentation` of the package in a folder, which is imported under another name and registers
    nothing."""
    package = types.ModuleType(name)
    package.__path__ = [str(source / "catseg_hf")]
    sys.modules[name] = package
    return importlib.import_module(f"{name}.modeling_catseg").CATSegForSemanticSegmentation


def rebuilt(model: torch.nn.Module, model_class: type[torch.nn.Module]) -> torch.nn.Module:
    """The same model of another build."""
    fields = model.config.to_dict()
    config_class = model_class.config_class
    accepted = {name: value for name, value in fields.items() if name in config_class().to_dict()}
    other = model_class(config_class.from_dict(accepted))
    other.load_state_dict(model.state_dict())
    return other.eval()


def runner(model: torch.nn.Module, case: Case) -> Callable[[], torch.Tensor]:
    """A function that runs the case once and returns logits."""
    if case.trains:
        model.train().freeze_clip("attention")
        recompute_activations(model, case.recomputes)
        return TrainingSteps(model, case.num_classes, 1, "cpu", case.mixed_precision).step
    model.to(case.dtype)
    pixel_values, text_embeds = random_inputs(model, case.num_classes, model.config.image_size, 1, "cpu")
    inputs = {"pixel_values": pixel_values.to(case.dtype), "text_embeds": text_embeds.to(case.dtype)}
    return torch.inference_mode()(lambda: model(**inputs, sliding_window=False).logits)


@contextmanager
def classes_kept(model: torch.nn.Module, kept: tuple[int, ...] | None) -> Iterator[None]:
    """In the block every crop through the model selects so many classes at each stage; all of them for `None`."""
    if kept is None:
        yield
        return
    numbers = dict(zip(SELECTION_STAGES, kept, strict=True))

    def closest(selection: ClassSelection, scores: torch.Tensor, stage: str) -> torch.Tensor:
        missing = shortfalls(scores)[0]
        indices = missing.topk(min(numbers[stage], len(missing)), largest=False).indices
        return torch.zeros_like(missing, dtype=torch.bool).index_fill_(0, indices, True)

    model.config.class_selection = {**dict.fromkeys(SELECTION_STAGES, 0.0), "weights": sample_weights(model)}
    model.config.max_classes_per_image = "auto"
    with patch.object(ClassSelection, "_can_win", closest):
        yield


def timed_pair(baseline: Callable[[], object], now: Callable[[], object], now_is_first: bool) -> tuple[float, float]:
    """CPU seconds of both."""
    if now_is_first:
        after, before = cpu_seconds(now), cpu_seconds(baseline)
    else:
        before, after = cpu_seconds(baseline), cpu_seconds(now)
    return before, after


def compare(case: Case, architecture: str, baseline_class: type[torch.nn.Module], repeats: int) -> dict:
    """One row of the table."""
    original = build_model(architecture, "cpu")
    baseline, model = runner(rebuilt(original, baseline_class), case), rebuilt(original, type(original))
    if case.trains:
        choose_attention(model, torch.device("cpu"), case.mixed_precision)
    now = runner(model, case)
    with classes_kept(model, case.kept):
        difference = (now().float() - baseline().float()).abs().max().item()
        peaks = peak_memory(baseline, "cpu"), peak_memory(now, "cpu")
        pairs = [timed_pair(baseline, now, bool(turn % 2)) for turn in range(repeats)]
    return {
        "case": case.name,
        "baseline_seconds": statistics.median(before for before, _ in pairs),
        "seconds": statistics.median(after for _, after in pairs),
        "ratio": statistics.median(before / after for before, after in pairs),
        "baseline_peak_memory_mb": peaks[0],
        "peak_memory_mb": peaks[1],
        "max_abs_logit_difference": difference if case.kept is None else None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", required=True, metavar="COMMIT", help="the earlier commit")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="(default: all)")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="base", help="released size (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each build (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", ROOT, "archive", arguments.baseline, "src/catseg_hf"], check=True, stdout=subprocess.PIPE
        ).stdout
        subprocess.run(["tar", "--extract", "--directory", folder], input=archive, check=True)
        baseline_class = load_model_class(Path(folder, "src"), "catseg_hf_baseline")
        result = {
            "baseline": arguments.baseline,
            "architecture": arguments.architecture,
            "machine": machine("cpu"),
            "torch": torch.__version__,
            "repeats": arguments.repeats,
            "rows": [],
        }
        for name in arguments.cases:
            result["rows"].append(compare(CASES[name], arguments.architecture, baseline_class, arguments.repeats))
            write_json(result, arguments.json)


if __name__ == "__main__":
    main()
