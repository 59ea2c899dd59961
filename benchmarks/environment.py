"""Times one crop under other instruction sets, OpenMP settings and loads, each in a process of its own.

    python benchmarks/environment.py precision --json precision.json
    python benchmarks/environment.py load --json load.json

`precision` compares number types where oneDNN may use AMX and where it may not, on a processor that has it. `load`
compares the model with the literal implementation on quiet cores and beside as many busy processes as there are cores,
and the model with more classes at once. Variables count from a process's start, hence the processes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm

from inference import run_reference
from measure import ARCHITECTURES, build_model, machine, random_inputs, write_json


MODEL, LITERAL = "catseg_hf", "literal"
FLOAT32, BFLOAT16, BFLOAT16_PRODUCTS = "float32", "bfloat16", "float32 with bfloat16 products"
INSTRUCTION_SETS = {
    "all": {},
    "AVX-512 with bfloat16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
SETTINGS = {
    "default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
CHUNK_SIZES = (20,)


@dataclass(frozen=True)
class Run:
    """
    A way to segment one crop.

    Args:
        name (`str`): Of its environment.
        environment (`dict[str, str]`): Variables of its process.
        precision (`str`): Type of the weights, and for float32 of what oneDNN multiplies.
        implementation (`str`): The model or the literal one.
        busy_processes (`int`): How many others want the cores.
        class_chunk_size (`int`, *optional*): `config.class_chunk_size`.
    """

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    precision: str = FLOAT32
    implementation: str = MODEL
    busy_processes: int = 0
    class_chunk_size: int | None = None


def precision_runs() -> list[Run]:
    precisions = (FLOAT32, BFLOAT16, BFLOAT16_PRODUCTS)
    return [Run(name, variables, kind) for name, variables in INSTRUCTION_SETS.items() for kind in precisions]


def load_runs() -> list[Run]:
    runs = []
    for busy in (0, os.cpu_count()):
        for implementation in (MODEL, LITERAL):
            runs += [
                Run(name, variables, implementation=implementation, busy_processes=busy)
                for name, variables in SETTINGS.items()
            ]
        runs += [Run("default", busy_processes=busy, class_chunk_size=size) for size in CHUNK_SIZES]
    return runs


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that never rest, while the block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@torch.inference_mode()
def time_crop(run: Run, architecture: str, num_classes: int, repeats: int) -> list[float]:
    """Seconds of each of `repeats` crops, after one that is not timed."""
    model = build_model(architecture, "cpu")
    model.config.class_chunk_size = run.class_chunk_size
    pixel_values, text_embeds = random_inputs(model, num_classes, model.config.image_size, 1, "cpu")
    if run.precision == BFLOAT16:
        model, pixel_values, text_embeds = (value.to(torch.bfloat16) for value in (model, pixel_values, text_embeds))
    elif run.precision == BFLOAT16_PRODUCTS:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        if run.implementation == LITERAL:
            run_reference(model, pixel_values, text_embeds, sliding_window=False)
        else:
            model(pixel_values, text_embeds=text_embeds, sliding_window=False)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=("precision", "load"))
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="base", help="released size (%(default)s)")
    parser.add_argument("--classes", type=int, default=171, help="size of the vocabulary (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed crops of each (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()

    rows = []
    for run in tqdm(precision_runs() if arguments.comparison == "precision" else load_runs(), unit="run"):
        case = run, arguments.architecture, arguments.classes, arguments.repeats
        with patch.dict(os.environ, run.environment), busy_processes(run.busy_processes):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                seconds = process.submit(time_crop, *case).result()
        rows.append({**asdict(run), "median_seconds": statistics.median(seconds), "seconds": seconds})
    result = {
        **{name: value for name, value in vars(arguments).items() if name != "json"},
        "machine": machine("cpu"),
        "torch": torch.__version__,
        "rows": rows,
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
