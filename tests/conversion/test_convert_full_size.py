"""Both released architectures through the converter: what they compute, and the memory and time that it takes."""

import os
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

import convert_catseg_original_to_hf as converter
from catseg_testing.full_size import ARCHITECTURES, assert_golden, full_size_state_dict
from catseg_testing.tokenizer import openai_vocabulary


pytestmark = pytest.mark.slow

# The peak of a process's own memory: what the system reports of a finished child starts at its parent's size.
RUN_AND_REPORT_PEAK = """
import runpy, sys
from pathlib import Path
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    status = Path("/proc/self/status").read_text()
    print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_size(architecture, tmp_path):
    checkpoint, output = tmp_path / "model.pth", tmp_path / "out"
    torch.save({"model": full_size_state_dict(architecture)}, checkpoint)
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", RUN_AND_REPORT_PEAK, converter.__file__, "--checkpoint_path", checkpoint]
        + ["--output_dir", output, "--tokenizer", openai_vocabulary()],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stderr=subprocess.PIPE,
        text=True,
    )
    seconds, size = time.monotonic() - start, checkpoint.stat().st_size
    assert result.returncode == 0, result.stderr
    peak = 1024 * int(result.stderr.split()[-1])
    print(f"{architecture}: {size / 1e9:.2f} GB, {seconds:.0f} s, peak {peak / 1e9:.2f} GB ({peak / size:.2f} times)")
    assert peak <= 2.5 * size
    checkpoint.unlink()

    assert_golden(AutoModelForSemanticSegmentation.from_pretrained(output), architecture)
