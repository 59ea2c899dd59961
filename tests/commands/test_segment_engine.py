"""What `catseg-hf segment` refuses of engines, and of two runs into one folder."""

import sys

import pytest

from catseg_hf import cli
from catseg_hf.images.sources import find_images
from catseg_hf.utils.files import locked_folder
from conftest import ROOT


SCENE = ROOT / "demo" / "scene.png"


@pytest.fixture
def segment(tmp_path, capsys):
    def segment(*arguments: str) -> tuple[int, str]:
        command = ["segment", str(SCENE), "--labels=grass", "--device=cpu", f"--output={tmp_path / 'output'}"]
        try:
            code = cli.main([*command, *arguments])
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return segment


def test_without_ray(segment, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("ray_data", "ray_files"):
        monkeypatch.delitem(sys.modules, f"catseg_hf.integrations.{name}", raising=False)
    code, error = segment("--engine=ray")
    assert code == 2 and 'pip install "catseg_hf[ray]"' in error and not (tmp_path / "output").exists()


@pytest.mark.parametrize("option", ["--ray_address=head:6379", "--actors=2", "--actor_cpus=1", "--actor_gpus=1"])
def test_options_of_ray_alone(segment, option):
    code, error = segment(option)
    assert code == 2 and f"{option.partition('=')[0]} goes with --engine ray" in error


def test_an_engine_beside_a_launcher(segment, monkeypatch):
    monkeypatch.setattr("catseg_hf.utils.processes.Processes.__init__.__defaults__", (0, 2, None))
    code, error = segment("--engine=ray")
    assert code == 2 and "but there are 2 processes: start the command without a launcher" in error


def test_two_runs_into_one_folder(segment, tmp_path):
    output = tmp_path / "output"
    with locked_folder(output):
        code, error = segment()
        assert code == 2 and f"Another run is writing {output}: wait for it" in error
        assert list(output.iterdir()) == []
    assert segment()[0] == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "http://127.0.0.1:9/shards/0.TAR?version=2",
            "is a tar file, but images are read here: unpack it",
        ),
        ("shards/0.tar.gz", "is a tar file"),
        ("s3://bucket/photos", "is on the file system 's3', but files, folders and URLs of http:// and https:// are"),
    ],
)
@pytest.mark.parametrize("engine", ["ray", "processes"])
def test_what_ray_reads_from_python_alone(source, words, engine, tmp_path, capsys):
    command = ["segment", source, "--labels=grass", f"--engine={engine}", f"--output={tmp_path / 'output'}"]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert f"{source!r} {words}" in error and "`catseg_hf.integrations.ray_data`" in error
    assert not (tmp_path / "output").exists()


def test_a_folder_that_is_called_as_a_tar_file(tmp_path):
    (tmp_path / "photos.tar").mkdir()
    image = tmp_path / "photos.tar" / "0.png"
    image.touch()
    assert find_images([str(tmp_path / "photos.tar")]) == ([str(image)], [])
