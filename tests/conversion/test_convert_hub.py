"""The converter and the Hub: downloads, resumes, works offline and uploads, against a stand-in on the loopback."""

import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants, hf_hub_download

import convert_catseg_original_to_hf as converter
from catseg_hf.hub.released_weights import download_checkpoint
from catseg_testing.hub_environment import SPACE, WEIGHTS, environment_of, set_endpoint, stand_in
from catseg_testing.hub_server import HubServer
from catseg_testing.tokenizer import TOKENIZER
from conftest import FIXTURES


LOAD_BY_NAME = """
import sys
import torch
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, pipeline
name = sys.argv[1]
model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
inputs = processor(text=["cat", "sofa"])
with torch.inference_mode():
    logits = model(torch.zeros(1, 3, 96, 96), **inputs, sliding_window=False).logits
assert logits.shape == (1, 2, 96, 96), logits.shape
pipe = pipeline(task="zero-shot-image-segmentation", model=name, trust_remote_code=True)
assert type(pipe).__name__ == "OpenVocabularySegmentationPipeline"
assert "catseg_hf" not in sys.modules
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with stand_in(monkeypatch, tmp_path) as hub:
        yield hub


def convert(output, *arguments) -> int:
    options = ["--output_dir", output, "--tokenizer", TOKENIZER, *arguments]
    return converter.main([str(option) for option in options])


def downloads(hub: HubServer) -> list:
    return hub.asked("GET", "/resolve/")


def test_variant_from_the_space(hub, tmp_path):
    assert convert(tmp_path / "out", "--variant", "base") == 0
    (download,) = downloads(hub)
    assert download.path.startswith(f"/spaces/{SPACE}/resolve/") and download.path.endswith("/model_base.pth")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert convert(tmp_path / "again", "--variant", "base") == 0
    assert len(downloads(hub)) == 1  # the second time from the cache


def test_a_broken_transfer_is_resumed(hub):
    hub.break_after = [1_000_000, 2_000_000]
    assert Path(download_checkpoint("base")).read_bytes() == WEIGHTS
    first, second, third = downloads(hub)
    starts = [int(request.range.removeprefix("bytes=").rstrip("-")) for request in (second, third)]
    assert first.range is None and 0 < starts[0] <= 1_000_000 < starts[1] <= 3_000_000


def test_a_connection_that_stays_broken(hub, tmp_path, capsys):
    hub.break_after = [1_000_000] + 20 * [0]
    assert convert(tmp_path / "out", "--variant", "base") == 1
    assert "Could not download model_base.pth" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    hub.break_after = []
    assert convert(tmp_path / "out", "--variant", "base") == 0


def test_offline_from_the_cache(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert convert(tmp_path / "out", "--variant", "base") == 1
    assert "HF_HUB_OFFLINE) and it is not in the cache" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    download_checkpoint("base")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.requests)
    assert convert(tmp_path / "out", "--variant", "base") == 0
    assert len(hub.requests) == count


def test_no_network(hub, tmp_path, monkeypatch, capsys):
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert convert(tmp_path / "out", "--variant", "base") == 1
    assert "http://127.0.0.1:9 cannot be reached and it is not in the cache" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["no space", "private", "no file"])
def test_refused_downloads(kind, hub, tmp_path, monkeypatch, capsys):
    hub.repositories["spaces", SPACE].private = kind == "private"
    if kind == "no space":
        hub.repositories.clear()
    variant = "large" if kind == "no file" else "base"
    assert convert(tmp_path / "out", "--variant", variant) == 1
    error = capsys.readouterr().err
    assert ("the Space has no such file" if kind == "no file" else "needs a token for it (HF_TOKEN)") in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    if kind == "private":
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert convert(tmp_path / "out", "--variant", variant) == 0


def test_a_damaged_file_of_the_space(hub, tmp_path, capsys):
    hub.repositories["spaces", SPACE].files["model_base.pth"] = WEIGHTS[:100_000]
    assert convert(tmp_path / "out", "--variant", "base") == 1
    assert "is truncated" in capsys.readouterr().err


def test_no_download_into_a_folder_that_is_taken(hub, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert convert(tmp_path / "out", "--variant", "base") == 1
    assert hub.requests == []


@pytest.mark.parametrize("private", [False, True])
def test_upload(private, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    arguments = ["--private"] if private else []
    checkpoint = FIXTURES / "original.pth"
    assert (
        convert(tmp_path / "out", "--checkpoint_path", checkpoint, "--push_to_hub", "tester/catseg-tiny", *arguments)
        == 0
    )
    repository = hub.repositories["models", "tester/catseg-tiny"]
    assert repository.private == private
    assert repository.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(hub.lfs_objects) == 1  # the weights
    assert 'from_pretrained("tester/catseg-tiny"' in repository.files["README.md"].decode()
    ModelCard.load(tmp_path / "out" / "README.md").validate()


def test_a_card_with_broken_metadata_is_noticed(hub):
    with pytest.raises(ValueError, match="license.* must be a string"):
        ModelCard("---\nlicense: [1]\n---\n").validate()


@pytest.mark.parametrize("kind", ["no token", "wrong token", "refused", "no network", "bad name"])
def test_failed_upload_keeps_the_folder(kind, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", {"no token": "", "wrong token": "hf_wrong"}.get(kind, hub.token))
    if kind == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.refuse_uploads = kind == "refused"
    name = "not/a/name" if kind == "bad name" else "tester/catseg-tiny"
    checkpoint = FIXTURES / "original.pth"
    assert convert(tmp_path / "out", "--checkpoint_path", checkpoint, "--push_to_hub", name, "--private") == 1
    error = capsys.readouterr().err.partition("error: ")[2]
    assert f"hf upload {name} {tmp_path / 'out'} --private" in error and "Traceback" not in error
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.fixture
def environment(hub, tmp_path) -> dict[str, str]:
    """For another process to take the stand-in for the Hub."""
    return environment_of(hub, tmp_path / "home") | {"HF_TOKEN": hub.token, "PYTHONPATH": ""}


def succeeds(environment, *command) -> bool:
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return True


@pytest.mark.slow
def test_an_uploaded_model_loads_by_its_name(hub, tmp_path, monkeypatch, environment):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    options = ["--checkpoint_path", FIXTURES / "original.pth", "--push_to_hub", "tester/catseg-tiny", "--private"]
    assert convert(tmp_path / "out", *options) == 0
    assert succeeds(environment, "-c", LOAD_BY_NAME, "tester/catseg-tiny")


@pytest.mark.slow
def test_environment_variables(hub, tmp_path, environment):
    """The script itself, in a process of its own: download and upload, then offline from the cache."""
    hub.repositories["spaces", SPACE].private = True
    options = ["--variant", "base", "--tokenizer", TOKENIZER, "--output_dir"]
    assert succeeds(environment, converter.__file__, *options, tmp_path / "out", "--push_to_hub", "tester/catseg-tiny")
    assert list((tmp_path / "home" / "hub").glob("spaces--*"))
    assert hub.repositories["models", "tester/catseg-tiny"].files
    count = len(hub.requests)
    assert succeeds(environment | {"HF_HUB_OFFLINE": "1"}, converter.__file__, *options, tmp_path / "again")
    assert len(hub.requests) == count


def test_range_requests(hub, tmp_path):
    """The stand-in itself: an unfinished file in the cache is completed and has the right contents."""
    path = hf_hub_download(SPACE, "model_base.pth", repo_type="space", local_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
