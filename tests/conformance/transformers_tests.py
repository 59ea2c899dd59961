"""
Makes the common test classes of the installed transformers release importable as the package `tests`.

They come from its source distribution, which pip downloads once into `.conformance/`, or from the source tree that the
environment variable `TRANSFORMERS_SOURCE` names. What that distribution lacks and CAT-Seg does not need (generation,
exporters, the Hub's test images and tiny models) is replaced by stand-ins.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import transformers
import transformers.utils

import catseg_hf


CACHE = Path(__file__).parents[2] / ".conformance"
IMAGE = Path(__file__).parents[1] / "fixtures" / "picture.png"


def source_tree() -> Path:
    """The folder of the transformers source whose `tests` are used."""
    if "TRANSFORMERS_SOURCE" in os.environ:
        return Path(os.environ["TRANSFORMERS_SOURCE"]).resolve()
    release = f"transformers-{transformers.__version__}"
    if not (CACHE / release).exists():
        download(release)
    return CACHE / release


def download(release: str):
    """Unpacks the tests of a release's source distribution into `.conformance/`."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*command, "--dest", folder, release.replace("-", "==")], check=True)
        with tarfile.open(f"{folder}/{release}.tar.gz") as archive:
            wanted = [member for member in archive if member.name.startswith(f"{release}/tests/")]
            archive.extractall(folder, members=wanted, filter="data")
        Path(folder, release).rename(CACHE / release)


def add_module(name: str, **contents: Any):
    module = sys.modules[name] = ModuleType(name)
    module.__dict__.update(contents)


def add_package():
    """Adds the package `tests` with its stand-ins, and looks up CAT-Seg's classes where it looks for transformers'."""
    folder = source_tree() / "tests"
    if not (folder / "test_modeling_common.py").exists():
        raise FileNotFoundError(
            f"{folder} has no test_modeling_common.py: point TRANSFORMERS_SOURCE at the source tree of transformers "
            f"{transformers.__version__}."
        )
    add_module("tests", __path__=[str(folder)])
    add_module("tests.exporters", __path__=[])
    add_module("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    add_module("tests.generation", __path__=[])
    add_module("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    add_module("tests.utils", __path__=[])
    add_module("tests.utils.test_configuration_utils", config_common_kwargs={})
    add_module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: str(IMAGE))
    names = {name: getattr(catseg_hf, name) for name in catseg_hf.__all__}
    transformers.utils.direct_transformers_import = lambda path: SimpleNamespace(**{**vars(transformers), **names})


def add_tiny_models(image_processors: list[str]):
    """Has the pipeline tests take the model that comes with the package, with each of these image processors, instead
    of a tiny one from the Hub."""
    folder = CACHE / "models"
    model = folder / "catseg" / "CATSegForSemanticSegmentation"
    model.parent.mkdir(parents=True, exist_ok=True)
    (folder / "reports").mkdir(exist_ok=True)
    model.unlink(missing_ok=True)
    model.symlink_to(catseg_hf.EMBEDDED_MODEL)
    summary = {"CATSegForSemanticSegmentation": {"tokenizer_classes": [], "processor_classes": image_processors}}
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = str(folder)
