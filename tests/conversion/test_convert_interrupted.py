"""A conversion that is killed leaves no output folder or a complete one, and does not disturb the next run."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import convert_catseg_original_to_hf as converter
from catseg_hf import CATSegProcessor
from catseg_hf.utils.files import aside_of, built_aside
from catseg_testing.tokenizer import TOKENIZER
from conftest import FIXTURES


ORIGINAL = FIXTURES / "original.pth"

# Converts in children that are forked, so that the libraries are loaded once. The first one counts the changes of the
# file system below the output's parent; each other one kills itself just before one of these changes.
KILLER = """
import os, signal, sys
from pathlib import Path
import convert_catseg_original_to_hf as converter

checkpoint, tokenizer, parent = sys.argv[1:]
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copyfile", "shutil.rmtree"}

def convert(output, killed_at):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in CHANGES and arguments and str(arguments[0]).startswith(parent):
            count += 1
            if count == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    status = converter.main(["--checkpoint_path", checkpoint, "--output_dir", output, "--tokenizer", tokenizer])
    return count if status == 0 else 0

def in_a_child(name, killed_at):
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(convert(str(Path(parent) / name), killed_at))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

changes = in_a_child("complete", 0)
print("changes", changes, flush=True)
for moment in (1, changes // 2, changes - 1, changes):
    print(moment, in_a_child(f"out{moment}", moment), flush=True)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_change_of_the_file_system(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", KILLER, ORIGINAL, TOKENIZER, tmp_path], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line.split()[0].isdigit()]
    statuses = {int(moment): int(status) for moment, status in lines}
    assert len(statuses) == 4 and set(statuses.values()) == {-signal.SIGKILL}, result.stderr
    assert "model.safetensors" in contents(tmp_path / "complete")
    assert [path.name for path in tmp_path.glob("*") if not path.name.startswith(".")] == ["complete"]
    # The last change is the move into place: everything is there by then, under the other name.
    rests = aside_of(tmp_path / f"out{max(statuses)}")
    assert contents(rests) == contents(tmp_path / "complete")


def test_the_next_run_clears_the_rests(tmp_path):
    output = tmp_path / "out"
    rests = aside_of(output)
    (rests / "folder").mkdir(parents=True)
    (rests / "half.safetensors").write_text("half")
    (rests / "folder" / "other").write_text("half")
    arguments = ["--checkpoint_path", str(ORIGINAL), "--output_dir", str(output), "--tokenizer", str(TOKENIZER)]
    assert converter.main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "half.safetensors" not in contents(output) and "folder" not in contents(output)


def test_two_runs_into_one_folder(tmp_path):
    with pytest.raises(ValueError, match="Another run is writing"):
        with built_aside(tmp_path / "out") as aside:
            (aside / "file").write_text("mine")
            with built_aside(tmp_path / "out"):
                pass
    with built_aside(tmp_path / "out") as aside:
        (aside / "file").write_text("mine")
    assert (tmp_path / "out" / "file").read_text() == "mine"


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(ValueError, match="is not empty"):
        with built_aside(tmp_path / "out") as aside:
            (aside / "file").write_text("mine")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "file").write_text("theirs")
    assert (tmp_path / "out" / "file").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    arguments = ["--checkpoint_path", str(ORIGINAL), "--tokenizer", str(TOKENIZER)]
    assert converter.main([*arguments, "--output_dir", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "out" / "model.safetensors").exists()


def test_interrupt_from_the_keyboard(tmp_path, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(CATSegProcessor, "save_pretrained", interrupt)
    arguments = ["--checkpoint_path", str(ORIGINAL), "--tokenizer", str(TOKENIZER)]
    assert converter.main([*arguments, "--output_dir", str(tmp_path / "new" / "out")]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_at_any_time(tmp_path):
    """The same from outside, at random times: also inside the libraries that write."""
    command = [sys.executable, converter.__file__, "--checkpoint_path", ORIGINAL, "--tokenizer", TOKENIZER]
    start = time.monotonic()
    subprocess.run([*command, "--output_dir", tmp_path / "complete"], check=True, capture_output=True)
    duration, complete = time.monotonic() - start, contents(tmp_path / "complete")
    chance = random.Random(0)
    killed = 0
    for _ in range(12):
        start = time.monotonic()
        process = subprocess.Popen(
            [*command, "--output_dir", tmp_path / "out"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(duration * chance.uniform(0.6, 1.05))
            duration = time.monotonic() - start  # on a machine that has become faster
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out").exists() or contents(tmp_path / "out") == complete
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert killed
