"""How long `catseg-hf` takes to answer, beside an earlier commit, in one run.

python benchmarks/command.py --baseline 16adf11 --json benchmarks/results/command.json

Times `--help`, a wrong argument, and `segment` on one image with the model that comes with the package, of which what
Python needs to import torch and transformers is subtracted: measured in the same run, in processes of their own
that import the same modules. The two commits take turns, and medians are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import ROOT, machine


# A console script's own lines; `catseg_hf` is found in the source folder of either commit.
SCRIPT = "import sys; sys.argv[0] = 'catseg-hf'; from catseg_hf.cli import {main}; sys.exit({main}())"
LIST_IMPORTS = """
import atexit, sys
heavy = ("torch", "transformers")
atexit.register(lambda: print("IMPORTED", *(n for n in sys.modules if n.split(".")[0] in heavy), file=sys.stderr))
"""
IMPORT = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)"


class Build:
    """The command of one commit."""

    def __init__(self, source: Path):
        self.environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
        main = "console_script" if "def console_script" in (source / "catseg_hf" / "cli.py").read_text() else "main"
        self.script = SCRIPT.format(main=main)

    def run(self, *arguments: str, code: str | None = None) -> tuple[float, str]:
        """Seconds that the command takes as a process, and what it prints to standard error."""
        start = time.perf_counter()
        command = [sys.executable, "-c", code or self.script, *arguments]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return time.perf_counter() - start, result.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", required=True, metavar="COMMIT", help="the earlier commit")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--detach", f"{folder}/old", arguments.baseline], check=True
        )
        try:
            builds = {"baseline": Build(Path(folder, "old", "src")), "now": Build(ROOT / "src")}
            segment = ("segment", str(ROOT / "demo" / "scene.png"), "--labels", "snow, balloon", "--output", folder)
            cases = {"help": ("--help",), "wrong_argument": ("segment", "--nonsense"), "segment": segment}
            imports = {}
            for name, build in builds.items():
                _, printed = build.run(*segment, code=LIST_IMPORTS + build.script)
                (imported,) = (line.split()[1:] for line in printed.splitlines() if line.startswith("IMPORTED"))
                imports[name] = [module for module in imported if module not in ("torch._classes", "torch._ops")]
            seconds = {case: {name: [] for name in builds} for case in (*cases, "imports")}
            for _ in range(arguments.repeats):
                for name, build in builds.items():
                    for case, options in cases.items():
                        seconds[case][name].append(build.run(*options)[0])
                    seconds["imports"][name].append(build.run(*imports[name], code=IMPORT)[0])
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", f"{folder}/old"], check=True)

    medians = {case: {name: statistics.median(s) for name, s in of.items()} for case, of in seconds.items()}
    medians["segment_beyond_imports"] = {name: medians["segment"][name] - medians["imports"][name] for name in builds}
    figures = {
        case: {f"{name}_seconds": round(value, 3) for name, value in of.items()}
        | {"ratio": round(of["baseline"] / of["now"], 2)}
        for case, of in medians.items()
    }
    print(json.dumps(figures, indent=2))
    if arguments.json is not None:
        figures = {"machine": machine("cpu"), "baseline": arguments.baseline, "repeats": arguments.repeats, **figures}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
