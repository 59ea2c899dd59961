"""How `catseg-hf` starts: what computes nothing is answered without torch and transformers, which take seconds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import catseg_hf
from catseg_hf import cli
from catseg_hf.commands.convert import VARIANTS
from catseg_hf.export.formats import FORMATS as EXPORT_FORMATS
from catseg_hf.video.files import FORMATS
from catseg_hf.video.segmentation import DEFAULT_SMOOTHING


SCRIPT = Path(sys.executable).with_name("catseg-hf")
HEAVY = {"torch", "transformers"}
SOURCES = Path(catseg_hf.__file__).parent.parent

# What the console script does where there is none, as in a folder of sources that is not installed.
START = "import sys; sys.argv[0] = 'catseg-hf'; from catseg_hf.cli import console_script; sys.exit(console_script())"
AS_COMMAND = "import json, sys; sys.argv[0] = '/usr/local/bin/catseg-hf'\n"


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def run_command(*arguments: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """A run of the command, and the packages that it imported."""
    script = [str(SCRIPT)] if SCRIPT.is_file() else ["-c", START]
    done = run("-X", "importtime", *script, *arguments)
    imported = re.findall(r"^import time:[^|]*\|[^|]*\|\s*(\w+)", done.stderr, re.MULTILINE)
    assert {"argparse", "catseg_hf"} <= set(imported)
    return done, set(imported)


def evaluate(code: str) -> object:
    """What Python code prints as JSON in a process that was started as the command."""
    done = run("-c", AS_COMMAND + code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([command, "--help"] for command in ("segment", "video", "convert", "export"))],
    ids=" ".join,
)
def test_help_and_version_come_at_once(arguments):
    done, imported = run_command(*arguments)
    assert done.returncode == 0 and not imported & HEAVY
    expected = f"catseg-hf {catseg_hf.__version__}\n" if arguments == ["--version"] else "usage: catseg-hf"
    assert done.stdout.startswith(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["segments"], "'segments'"),
        (["segment", "photos", "--output=out", "--batch_size=0"], "0 is not positive"),
        (["segment", "photos", "--output=out", "--format=png"], "'png' (choose from"),
        (["segment", "photos", "--output=out", "--min_area=9"], "--min_area goes with --format"),
        (["video", "clip.mp4", "--output=out.mp4", "--opacity=2"], "2 is not between 0 and 1"),
        (["convert", "--variant=base"], "--output_dir is required"),
        (["export", "--model=model", "--output=out", "--format=openvino", "--quantize=int8"], "--quantize goes with"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0] if value else "nothing",
)
def test_wrong_options_are_refused_at_once(arguments, message):
    done, imported = run_command(*arguments)
    assert done.returncode == 2 and not imported & HEAVY
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("catseg-hf")]
    assert "error: " in error and message in error and done.stdout == ""


def test_the_parser_alone_imports_little():
    code = "from catseg_hf.cli import build_parser; build_parser(); print(json.dumps(list(sys.modules)))"
    assert not HEAVY & set(evaluate(code))


def test_what_the_package_exports_is_there_when_it_is_asked_for():
    code = """
import catseg_hf
before = "torch" in sys.modules
listed = dir(catseg_hf)
from catseg_hf import CATSegConfig
from catseg_hf import *
print(json.dumps([before, listed, CATSegConfig.model_type, sorted(set(catseg_hf.__all__) - set(globals()))]))
"""
    before, listed, model_type, missing = evaluate(code)
    assert not before and model_type == "catseg" and missing == []
    assert set(listed) >= {*catseg_hf.__all__, "__version__", "EMBEDDED_MODEL"} and listed == sorted(set(listed))


def test_other_names_are_not_there():
    code = """
import catseg_hf
try:
    catseg_hf.CATSegModels
except AttributeError as error:
    print(json.dumps([str(error), hasattr(catseg_hf, "_hidden"), "torch" in sys.modules]))
"""
    assert evaluate(code) == ["module 'catseg_hf' has no attribute 'CATSegModels'", False, False]


def test_everything_is_registered_before_a_command_runs():
    code = """
from catseg_hf import cli
from catseg_hf.commands import segment

def run(arguments):
    from transformers import AutoConfig
    print(json.dumps(AutoConfig.for_model("catseg").model_type))
    return 0

segment.run = run
sys.exit(cli.main(["segment", "photos", "--output=out"]))
"""
    assert evaluate(code) == "catseg"


def test_elsewhere_everything_is_imported_with_the_package():
    assert Path(sys.argv[0]).stem != "catseg-hf" and "__getattr__" not in vars(catseg_hf)
    assert vars(catseg_hf).keys() >= set(catseg_hf.__all__)


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as exit:
        cli.main([command, "--help"])
    assert exit.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_what_help_says_is_what_the_code_has(capsys):
    """Help repeats what the modules have that it must not import."""
    text = help_of("video", capsys)
    (written,) = re.findall(r"file to write: ([^-]*)", text)
    assert re.findall(r"\.\w+", written) == list(FORMATS)
    options = cli.build_parser().parse_args(["video", "clip.mp4", "--output", "out.mp4"])
    assert options.smoothing == DEFAULT_SMOOTHING and f"default: {DEFAULT_SMOOTHING};" in text
    assert ",".join(sorted(VARIANTS)) in help_of("convert", capsys)
    assert ",".join(EXPORT_FORMATS) in help_of("export", capsys)
