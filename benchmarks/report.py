"""Writes the README's speed table from the results that the benchmarks left, and runs those that are missing.

python benchmarks/report.py         # the table only
python benchmarks/report.py --run   # every case again: about 30 minutes on two cores, 10 GB of memory
"""

import argparse
import json
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


def run_case(architecture: str, name: str):
    _, script, options = CASES[name]
    file = RESULTS / f"{architecture}_{name}.json"
    command = [
        sys.executable,
        ROOT / "benchmarks" / script,
        f"--architecture={architecture}",
        *options,
        f"--json={file}",
    ]
    subprocess.run(command, check=True)


def table() -> str:
    """Markdown rows of all results, by architecture."""
    lines, machines = [], set()
    for architecture, title in (("base", "ViT-B/16"), ("large", "ViT-L/14")):
        if not list(RESULTS.glob(f"{architecture}_*.json")):
            continue
        lines += [
            f"| {title} | literal | catseg_hf | ratio | peak memory, literal | peak memory, catseg_hf |",
            "|---|---|---|---|---|---|",
        ]
        for name, (label, _, _) in CASES.items():
            file = RESULTS / f"{architecture}_{name}.json"
            if not file.exists():
                continue
            result = json.loads(file.read_text())
            machines.add(f"{result['machine']}, torch {result['torch']}")
            lines.append(
                f"| {label} | {result['reference_seconds']:.2f} s | {result['seconds']:.2f} s | "
                f"{result['ratio']:.1f} | "
                f"{result['reference_peak_memory_mb'] / 1000:.2f} GB | {result['peak_memory_mb'] / 1000:.2f} GB |"
            )
        lines.append("")
    return f"Machine: {'; '.join(sorted(machines))}.\n\n" + "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run every case again")
    parser.add_argument("--architectures", nargs="+", default=["base", "large"], help="to run (%(default)s)")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for architecture in arguments.architectures:
        for name in CASES:
            if arguments.run or not (RESULTS / f"{architecture}_{name}.json").exists():
                run_case(architecture, name)

    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n{table()}{END}{after}")
    print(table())


if __name__ == "__main__":
    main()
