"""Writes the tables of docs/speed.md from the results that the benchmarks left, after running those that are missing.

python benchmarks/report.py         # the tables, and only what has no result yet
python benchmarks/report.py --run   # every case again: about an hour on two cores, 16 GB of memory
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- speed table -->", "<!-- end of speed table -->"

CASES = {
    "crop_20": ("one crop, 20 classes", "inference.py", ["--classes=20"]),
    "crop_171": ("one crop, 171 classes", "inference.py", ["--classes=171"]),
    "crop_256": ("one crop, 256 classes", "inference.py", ["--classes=256"]),
    "crop_847": ("one crop, 847 classes", "inference.py", ["--classes=847"]),
    "sliding_window_171": ("sliding window, 171 classes", "inference.py", ["--classes=171", "--sliding_window"]),
    "crop_171_bfloat16": (
        "one crop, 171 classes, bfloat16 against float32",
        "inference.py",
        ["--classes=171", "--dtype=bfloat16"],
    ),
    "text_171": ("text features of 171 names", "text_features.py", []),
    "training_171": ("training step, batch 1, 171 classes", "training_step.py", []),
    "training_171_checkpointing": (
        "the same with gradient checkpointing",
        "training_step.py",
        ["--gradient_checkpointing"],
    ),
}


# Results that are no comparison with the literal model: script and options.
MEASUREMENTS = {
    "data_loading": ("data_loading.py", []),
    "large_jobs": ("large_jobs.py", []),
    "mean_iou": ("mean_iou.py", []),
}


def run(script: str, options: list[str], result: str):
    command = [sys.executable, ROOT / "benchmarks" / script, *options, f"--json={RESULTS / result}.json"]
    # Some time the training package, which lies beside its scripts.
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "training")})


def table() -> str:
    """Markdown rows of all results, by architecture, and of the measurements."""
    results = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}
    machines = sorted({f"{result['machine']}, torch {result['torch']}" for result in results.values()})
    lines = [f"Machine: {'; '.join(machines)}.", ""]
    for architecture, title in (("base", "ViT-B/16"), ("large", "ViT-L/14")):
        if not any(name.startswith(f"{architecture}_") for name in results):
            continue
        lines += [
            f"| {title} | literal | catseg_hf | ratio | peak memory, literal | peak memory, catseg_hf |",
            "|---|---|---|---|---|---|",
        ]
        for name, (label, _, _) in CASES.items():
            result = results.get(f"{architecture}_{name}")
            if result is None:
                continue
            lines.append(
                f"| {label} | {result['reference_seconds']:.2f} s | {result['seconds']:.2f} s | "
                f"{result['ratio']:.1f} | "
                f"{result['reference_peak_memory_mb'] / 1000:.2f} GB | {result['peak_memory_mb'] / 1000:.2f} GB |"
            )
        lines.append("")
    loading, metric = results["data_loading"]["crops_per_second_by_workers"], results["mean_iou"]
    jobs = results["large_jobs"]["images_per_second"]
    lines += [
        "| training data, large jobs and metric | |",
        "|---|---|",
        f"| training crops from 640 x 480 JPEGs, 2 workers | {loading['2']:.0f} a second |",
        f"| embedded model on files, one step after the other | {jobs['sequential']:.1f} images a second |",
        f"| the same with `catseg-hf segment` | {jobs['overlapping']:.1f} images a second |",
        f"| the same in 2 processes | {jobs['2 processes']:.1f} images a second |",
        f"| mean IoU of {metric['images']} images, {metric['classes']} classes | {metric['seconds']:.2f} s |",
        f"| the same from lists of label maps | {metric['reference_seconds']:.2f} s |",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run every case again")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    jobs = {
        f"{architecture}_{name}": (script, [f"--architecture={architecture}", *options])
        for architecture in ("base", "large")
        for name, (_, script, options) in CASES.items()
    }
    for result, (script, options) in (jobs | MEASUREMENTS).items():
        if arguments.run or not (RESULTS / f"{result}.json").exists():
            run(script, options, result)

    page = ROOT / "docs" / "speed.md"
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n{table()}{END}{after}")
    print(table())


if __name__ == "__main__":
    main()
