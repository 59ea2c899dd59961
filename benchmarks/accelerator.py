"""Times inference and training on an accelerator, row by row in one process, the most telling rows first.

    PYTHONPATH=training python benchmarks/accelerator.py --device cuda --time_limit 100 --json result.json

Every row compares one way to run the model with the literal implementation in float32, or under autocast where the row
has half precision. The file is written after every row, so that whatever ends the run, the rows until then are kept.
The time limit is looked at before a row begins and not within it: those that compile take tens of seconds.
"""

import argparse
import contextlib
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from catseg_hf import pad_classes
from catseg_training.model import recompute_activations
from inference import run_reference
from measure import ARCHITECTURES, build_model, machine, measure, random_inputs
from training_step import TrainingSteps


CROP, SLIDING_WINDOW, TRAINING_STEP = "crop", "sliding window", "training step"
FLOAT32, AUTOCAST, BFLOAT16 = "float32", "bfloat16 autocast", "bfloat16"


@dataclass(frozen=True)
class Workload:
    kind: str
    classes: int
    batch_size: int = 1


@dataclass(frozen=True)
class Variant:
    """
    A way to run the model.

    Args:
        precision (`str`): Float32, float32 weights under autocast, or bfloat16 weights.
        compile_mode (`str`, *optional*): Mode of `torch.compile`; eager without.
        views_at_once (`int`, *optional*): `config.sliding_window_batch_size`.
        max_classes (`int`, *optional*): `config.max_classes_per_image`.
        padded_classes (`int`, *optional*): Rows that the text features are filled up to, for one graph of any number
            of classes up to that.
        recomputation (`bool`): Whether training computes activations again, as train.py does by default.
        channels_last (`bool`): Whether images and the weights of convolutions have the channels innermost.
    """

    precision: str = FLOAT32
    compile_mode: str | None = None
    views_at_once: int | None = None
    max_classes: int | None = None
    padded_classes: int | None = None
    recomputation: bool = True
    channels_last: bool = False


PRECISIONS = [Variant(), Variant(AUTOCAST), Variant(BFLOAT16)]
VIEWS = [*PRECISIONS, Variant(views_at_once=1), Variant(AUTOCAST, views_at_once=1)]
STEPS = [Variant(), Variant(AUTOCAST), Variant(recomputation=False), Variant(AUTOCAST, recomputation=False)]
COMPILED = [Variant(AUTOCAST, "reduce-overhead"), Variant(FLOAT32, "reduce-overhead"), Variant(AUTOCAST, "default")]
CHANNELS_LAST = [Variant(channels_last=True), Variant(AUTOCAST, channels_last=True)]
GRAPHS = [
    Variant(BFLOAT16),
    Variant(BFLOAT16, "reduce-overhead"),
    Variant(BFLOAT16, "reduce-overhead", padded_classes=192),
]
LIMITS = [Variant(AUTOCAST, max_classes=limit) for limit in (None, 128, 64, 32)]
PLAN = [
    (Workload(SLIDING_WINDOW, 150), GRAPHS),
    (Workload(SLIDING_WINDOW, 150, 8), GRAPHS),
    (Workload(CROP, 171), PRECISIONS),
    (Workload(CROP, 20), PRECISIONS),
    (Workload(SLIDING_WINDOW, 171), VIEWS),
    (Workload(CROP, 171), CHANNELS_LAST),
    (Workload(TRAINING_STEP, 171), STEPS),
    (Workload(SLIDING_WINDOW, 20), VIEWS),
    (Workload(SLIDING_WINDOW, 847), LIMITS),
    (Workload(CROP, 171, 16), PRECISIONS),
    (Workload(CROP, 20, 16), PRECISIONS),
    (Workload(TRAINING_STEP, 171, 4), STEPS),
    (Workload(SLIDING_WINDOW, 171, 4), PRECISIONS),
    (Workload(CROP, 20), COMPILED[:1]),
    (Workload(CROP, 171), COMPILED),
    (Workload(SLIDING_WINDOW, 171), COMPILED),
    (Workload(CROP, 20), COMPILED[1:]),
    (Workload(CROP, 171, 4), PRECISIONS),
    (Workload(CROP, 20, 4), PRECISIONS),
    (Workload(SLIDING_WINDOW, 20, 4), PRECISIONS),
    (Workload(SLIDING_WINDOW, 171, 16), PRECISIONS),
    (Workload(TRAINING_STEP, 171, 16), STEPS),
]


class Runner:
    """Runs workloads on one model's weights, and the literal implementation no more often than needed."""

    def __init__(self, architecture: str, device: str, repeats: int):
        self.device, self.repeats = device, repeats
        self.model = build_model(architecture, device)
        self.references: dict[tuple[Workload, bool], tuple[float, float]] = {}

    def row(self, workload: Workload, variant: Variant) -> dict:
        """What was run and how, with seconds, memory and waits, or the error that ended it."""
        row = {**asdict(workload), **asdict(variant)}
        try:
            seconds, peak, waits = self.measure_model(workload, variant)
            row |= {
                "seconds": seconds,
                "images_per_second": workload.batch_size / seconds,
                "peak_memory_mb": peak,
                "host_waits": waits,
            }
            reference_seconds, reference_peak = self.measure_reference(workload, variant.precision != FLOAT32)
            row |= {
                "reference_seconds": reference_seconds,
                "reference_peak_memory_mb": reference_peak,
                "ratio": reference_seconds / seconds,
            }
        except Exception as error:  # the rows after it are measured all the same
            row["error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
        return row

    def measure_model(self, workload: Workload, variant: Variant) -> tuple[float, float, int | None]:
        model = copy.deepcopy(self.model)
        model.config.sliding_window_batch_size = variant.views_at_once
        model.config.max_classes_per_image = variant.max_classes
        if workload.kind == TRAINING_STEP:
            mixed_precision = "bf16" if variant.precision == AUTOCAST else "no"
            model.train().freeze_clip("attention")
            if variant.recomputation:
                recompute_activations(model)
            run = TrainingSteps(model, workload.classes, workload.batch_size, self.device, mixed_precision).step
        else:
            pixel_values, text_embeds = self.inputs(workload)
            if variant.precision == BFLOAT16:
                model, pixel_values = model.to(torch.bfloat16), pixel_values.to(torch.bfloat16)
            if variant.channels_last:
                model = model.to(memory_format=torch.channels_last)
                pixel_values = pixel_values.to(memory_format=torch.channels_last)
            forward = model
            if variant.compile_mode is not None:
                forward = torch.compile(model, fullgraph=True, dynamic=False, mode=variant.compile_mode)
            inputs = {"text_embeds": text_embeds, "sliding_window": workload.kind == SLIDING_WINDOW}
            if variant.padded_classes is not None:
                inputs["text_embeds"], inputs["class_mask"] = pad_classes(text_embeds, variant.padded_classes)

            @torch.no_grad()
            def run() -> torch.Tensor:
                return forward(pixel_values, **inputs).logits[:, : workload.classes]

        with self.autocast(variant.precision == AUTOCAST):
            for _ in range(3 if variant.compile_mode else 0):  # compiles, then records the graphs
                run()
            seconds, peak, _ = measure(run, self.device, self.repeats)
            return seconds, peak, count_waits(run, self.device)

    def measure_reference(self, workload: Workload, half_precision: bool) -> tuple[float, float]:
        key = workload, half_precision
        if key not in self.references:
            if workload.kind == TRAINING_STEP:
                model = copy.deepcopy(self.model).train()
                model.freeze_clip("attention")
                steps = workload.classes, workload.batch_size, self.device, "bf16" if half_precision else "no"
                run = TrainingSteps(model, *steps).reference_step
            else:
                inputs = (*self.inputs(workload), workload.kind == SLIDING_WINDOW)
                run = torch.no_grad()(lambda: run_reference(self.model, *inputs))
            with self.autocast(half_precision):
                self.references[key] = measure(run, self.device, max(1, self.repeats // 2))[:2]
        return self.references[key]

    def inputs(self, workload: Workload) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.model.config
        side = config.sliding_window_image_size if workload.kind == SLIDING_WINDOW else config.image_size
        return random_inputs(self.model, workload.classes, side, workload.batch_size, self.device)

    def autocast(self, enabled: bool) -> contextlib.AbstractContextManager:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=enabled)


def count_waits(run: Callable[[], object], device: str) -> int | None:
    """How often the host waits for the GPU in a call; `None` on other devices."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def plan(max_batch_size: int) -> Iterator[tuple[Workload, Variant]]:
    for workload, variants in PLAN:
        if workload.batch_size <= max_batch_size:
            yield from ((workload, variant) for variant in variants)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="base", help="released size (%(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (%(default)s)")
    parser.add_argument("--time_limit", type=float, default=float("inf"), help="seconds after which no row begins")
    parser.add_argument("--max_batch_size", type=int, default=16, help="leaves out larger batches (%(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()

    start = time.monotonic()
    runner = Runner(arguments.architecture, arguments.device, arguments.repeats)
    result = {
        "architecture": arguments.architecture,
        "machine": machine(arguments.device),
        "torch": torch.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "rows": [],
    }
    for workload, variant in plan(arguments.max_batch_size):
        if time.monotonic() - start > arguments.time_limit:
            break
        result["rows"].append(runner.row(workload, variant))
        print(json.dumps(result["rows"][-1]), flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
