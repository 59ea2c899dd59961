"""A saved folder is complete for somebody who has not installed the package."""

import filecmp
import json
import os
import subprocess
from pathlib import Path

import pytest
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, pipeline

from catseg_hf.remote_code_catseg import AUTO_MAP, CUSTOM_PIPELINES
from conftest import FIXTURES, ROOT


SCRIPT = ROOT / "tests" / "catseg_testing" / "remote_code_user.py"


@pytest.fixture
def saved(model_with_vocabulary, processor, tmp_path) -> Path:
    model_with_vocabulary.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def use(python: Path, folder: Path, saved_again: Path, modules_cache: Path) -> str:
    environment = {**os.environ, "HF_MODULES_CACHE": str(modules_cache), "PYTHONPATH": ""}
    command = [python, SCRIPT, folder, FIXTURES / "picture.png", saved_again]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_folder_is_complete(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and config["custom_pipelines"] == CUSTOM_PIPELINES
    files = {reference.split(".")[0] for value in AUTO_MAP.values() if isinstance(value, str) for reference in [value]}
    assert all((saved / f"{name}.py").exists() for name in files)
    assert not (saved / "preprocessor_config.json").exists()


@pytest.mark.slow
def test_stranger_uses_it_and_saves_it_again(saved, python_without_package, tmp_path):
    first = use(python_without_package, saved, tmp_path / "again", tmp_path / "cache_1")
    names = sorted(path.name for path in saved.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert filecmp.cmpfiles(saved, tmp_path / "again", names, shallow=False)[0] == names
    second = use(python_without_package, tmp_path / "again", tmp_path / "third", tmp_path / "cache_2")
    assert first == second
    assert "built-in pipeline: ['cat'" in first
    assert "open-vocabulary pipeline: ['cat', 'sofa']" in first


def test_own_code_is_preferred_to_the_folders(saved):
    """Whoever has the package is not asked to trust the folder's copy of it."""
    loaded = [
        AutoModelForSemanticSegmentation.from_pretrained(saved),
        AutoProcessor.from_pretrained(saved),
        pipeline("image-segmentation", model=str(saved)).model,
        pipeline("zero-shot-image-segmentation", model=str(saved)),
    ]
    modules = [type(value).__module__ for value in loaded]
    assert modules == [
        "catseg_hf.modeling_catseg",
        "catseg_hf.processing_catseg",
        "catseg_hf.modeling_catseg",
        "catseg_hf.pipeline_catseg",
    ]
