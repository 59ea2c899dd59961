"""Released weights by name, fetched and converted once and never stale, against a stand-in for the Hub."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import catseg_hf
from catseg_hf.conversion import TOKENIZER as TOKENIZER_NAME
from catseg_hf.conversion import converter
from catseg_hf.conversion.openai_tokenizer import load_tokenizer
from catseg_hf.errors import UserError
from catseg_hf.hub import pretrained as module
from catseg_hf.loading import load_segmenter, names, resolve_model
from catseg_hf.utils.files import aside_of, built_aside
from catseg_testing.hub_environment import SPACE, WEIGHTS, environment_of, set_endpoint, stand_in
from catseg_testing.tokenizer import TOKENIZER
from catseg_training.model import load_checkpoint
from conftest import FIXTURES


ETAG = hashlib.sha256(WEIGHTS).hexdigest()
MORE_WEIGHTS = WEIGHTS + b"more"  # for tests that do not open them
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with stand_in(monkeypatch, tmp_path) as hub:
        tokenizer = {path.name: path.read_bytes() for path in TOKENIZER.iterdir()}
        hub.add("models", TOKENIZER_NAME, {**tokenizer, "config.json": b'{"model_type": "clip"}'})
        yield hub


@pytest.fixture
def conversions(monkeypatch) -> list[Path]:
    """The checkpoints that were converted, by something that takes no time."""
    converted = []

    def convert(checkpoint: Path, folder: Path, **options):
        with built_aside(folder) as aside:
            (aside / "model.safetensors").write_bytes(checkpoint.read_bytes())
        torch.rand(1)
        converted.append(checkpoint)

    monkeypatch.setattr(converter, "convert", convert)
    return converted


def publish(hub, weights: bytes):
    hub.repositories["spaces", SPACE].files["model_base.pth"] = weights


def held(folder: str) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def downloads(hub) -> int:
    return len(hub.asked("GET", "/model_base.pth"))


def test_the_second_call_needs_no_hub(hub, conversions, monkeypatch, tmp_path):
    first = catseg_hf.pretrained("base")
    assert held(first) == WEIGHTS and Path(first).is_relative_to(tmp_path / "assets" / "catseg_hf")
    assert ETAG in first and catseg_hf.__version__ in first
    assert catseg_hf.pretrained("base") == first
    assert downloads(hub) == 1 and len(conversions) == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.requests)
    assert catseg_hf.pretrained("base") == first
    assert len(hub.requests) == count and len(conversions) == 1


@pytest.mark.parametrize("kind", ["unreachable", "space gone", "no access"])
def test_a_hub_that_does_not_answer(kind, hub, conversions, monkeypatch):
    first = catseg_hf.pretrained("base")
    if kind == "unreachable":
        set_endpoint(monkeypatch, UNREACHABLE)
    elif kind == "space gone":
        del hub.repositories["spaces", SPACE]
    else:
        hub.repositories["spaces", SPACE].private = True
    assert catseg_hf.pretrained("base") == first and len(conversions) == 1


def test_another_checkpoint_on_the_hub(hub, conversions, monkeypatch):
    first = catseg_hf.pretrained("base")
    publish(hub, MORE_WEIGHTS)
    second = catseg_hf.pretrained("base")
    assert held(second) == MORE_WEIGHTS and held(first) == WEIGHTS
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert catseg_hf.pretrained("base") == second
    shutil.rmtree(second)  # which the cached checkpoint is then converted to again, and not replaced by the older one
    assert catseg_hf.pretrained("base") == second and len(conversions) == 3


@pytest.mark.parametrize("name, value", [("CONVERTER_VERSION", module.CONVERTER_VERSION + 1), ("__version__", "99.0")])
def test_another_version(name, value, hub, conversions, monkeypatch):
    first = catseg_hf.pretrained("base")
    monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert catseg_hf.pretrained("base") != first
    assert downloads(hub) == 1 and len(conversions) == 2


def test_a_converted_checkpoint_outlives_its_source(hub, conversions, monkeypatch, tmp_path):
    first = catseg_hf.pretrained("base")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert catseg_hf.pretrained("base") == first
    monkeypatch.setattr(module, "CONVERTER_VERSION", module.CONVERTER_VERSION + 1)
    with pytest.raises(UserError, match="model_base.pth"):
        catseg_hf.pretrained("base")


def test_a_cache_without_links(hub, conversions, monkeypatch, tmp_path):
    first = catseg_hf.pretrained("base")
    (link,) = tmp_path.glob("cache/spaces--*/snapshots/*/model_base.pth")
    link.resolve().replace(link)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert catseg_hf.pretrained("base") == first
    shutil.rmtree(first)
    assert catseg_hf.pretrained("base") == first


@pytest.mark.parametrize("is_cached", [False, True])
def test_too_little_disk(is_cached, hub, conversions, monkeypatch, tmp_path):
    if is_cached:
        shutil.rmtree(catseg_hf.pretrained("base"))
    before = downloads(hub)
    enough = len(WEIGHTS) * (1 if is_cached else 2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=enough - 1))
    with pytest.raises(UserError) as caught:
        catseg_hf.pretrained("base")
    message = str(caught.value)
    assert f"0.0066 GB for the converted checkpoint in {tmp_path / 'assets'}" in message and "HF_HOME" in message
    assert (f"for the download in {tmp_path / 'cache'}" in message) == (not is_cached)
    assert downloads(hub) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=enough))
    assert catseg_hf.pretrained("base")


def test_other_contents_than_the_hub_says(hub, conversions, tmp_path):
    hub.etags["model_base.pth"] = "0" * 64
    for _ in range(2):
        with pytest.raises(UserError, match=f"model_base.pth is not what .* holds: its SHA-256 is {ETAG}") as caught:
            catseg_hf.pretrained("base")
    assert conversions == []
    Path(str(caught.value).split("Delete ")[1].split(" and run")[0]).unlink()
    hub.etags.clear()
    assert held(catseg_hf.pretrained("base")) == WEIGHTS


def test_an_etag_that_is_no_digest(hub, conversions):
    folder = Path(catseg_hf.pretrained("base"))
    hub.etags["model_base.pth"] = "../etag"
    (folder.parent / folder.name.replace(ETAG, "../etag")).mkdir()
    other = Path(catseg_hf.pretrained("base"))
    assert other.parent == folder.parent and held(other) == WEIGHTS


@pytest.mark.parametrize("kind", ["offline", "unreachable"])
def test_no_network(kind, hub, monkeypatch, tmp_path):
    if kind == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    set_endpoint(monkeypatch, UNREACHABLE)
    with pytest.raises(UserError) as caught:
        catseg_hf.pretrained("base")
    message = str(caught.value)
    cause = "HF_HUB_OFFLINE" if kind == "offline" else f"{UNREACHABLE} cannot be reached"
    for part in ("model_base.pth (about 0.62 GB)", SPACE, cause, str(tmp_path / "cache"), "HF_HOME"):
        assert part in message
    assert "\n" not in message


def test_no_tokenizer(hub, conversions):
    del hub.repositories["models", TOKENIZER_NAME]
    with pytest.raises(UserError, match=f"tokenizer too, {TOKENIZER_NAME}"):
        catseg_hf.pretrained("base")
    assert downloads(hub) == 0


def test_the_tokenizer_does_not_depend_on_where_it_comes_from(hub, monkeypatch, tmp_path):
    saved = []
    for source, is_offline in ((TOKENIZER_NAME, False), (TOKENIZER_NAME, True), (str(TOKENIZER), True)):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
        load_tokenizer(source).save_pretrained(tmp_path / str(len(saved)))
        saved.append({path.name: path.read_bytes() for path in (tmp_path / str(len(saved))).iterdir()})
    assert saved[0] == saved[1] == saved[2]


def test_rests_of_killed_runs_are_cleared(hub, conversions):
    folder = Path(catseg_hf.pretrained("base"))
    rests = [aside_of(folder), aside_of(folder.with_name("older"))]
    for rest in rests:
        rest.mkdir()
        (rest / "half").write_text("half")
    assert catseg_hf.pretrained("base") == str(folder)
    shutil.rmtree(folder)
    assert catseg_hf.pretrained("base") == str(folder)
    assert not any(rest.exists() for rest in rests)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


def test_a_file_system_without_locks(hub, conversions, monkeypatch):
    @contextmanager
    def refuse(*arguments, **options):
        raise OSError(errno.ENOTSUP, "Operation not supported")
        yield

    monkeypatch.setattr(module, "WeakFileLock", refuse)
    assert held(catseg_hf.pretrained("base")) == WEIGHTS


def test_a_folder_that_cannot_be_written(hub, conversions, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be kept in .*HF_HOME"):
        catseg_hf.pretrained("base")


def test_random_numbers_are_the_callers(hub, conversions):
    state = torch.get_rng_state()
    catseg_hf.pretrained("base")
    assert torch.equal(torch.get_rng_state(), state)


def test_other_names():
    with pytest.raises(UserError, match=r"'bsae' \(did you mean 'base'\?\): there are base and large"):
        catseg_hf.pretrained("bsae")


@pytest.mark.parametrize(
    "name, hint", [("bsae", "did you mean 'base'"), ("Large", "did you mean 'large'"), ("a/b/c", "")]
)
def test_names_that_are_no_model(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name!r} could not be loaded: .*{hint}.* nor a folder here"):
        resolve_model(name)
    Path("model_base.pth").touch()
    with pytest.raises(UserError, match="catseg-hf convert --checkpoint_path model_base.pth"):
        resolve_model("model_base.pth")


def test_a_folder_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(names, "pretrained", lambda name: f"the weights {name}")
    Path("base").mkdir()
    Path("other").mkdir()
    assert resolve_model("base") == "the weights base"
    assert [resolve_model(name) for name in ("./base", "other", "owner/name")] == ["./base", "other", "owner/name"]
    assert resolve_model(tmp_path / "base") == str(tmp_path / "base")


def load_for_export(name: str):
    pytest.importorskip("transformers.exporters", reason="transformers has no exporters before 5.24")
    from catseg_hf.export.graphs import load

    return load(name)[0]


@pytest.mark.parametrize(
    "load", [lambda name: load_segmenter(name).model, lambda name: load_checkpoint(name)[0], load_for_export]
)
def test_whatever_loads_models_takes_names(load, small_checkpoint, monkeypatch):
    monkeypatch.setattr(names, "pretrained", lambda name: {"large": str(small_checkpoint)}[name])
    assert load("large").name_or_path == str(small_checkpoint)
    with pytest.raises(UserError, match="'bsae' could not be loaded: .*did you mean 'base'"):
        load("bsae")


# Runs jobs in children that are forked, so that the libraries are loaded once. Each line of the standard input is a
# list of jobs to run at the same time, and is answered with their exit statuses.
DRIVER = """
import json, os, signal, sys
from huggingface_hub import constants
from catseg_hf import cli, pretrained

def run(job):
    constants.HF_HUB_OFFLINE = job.get("offline", False)
    def hook(event, arguments):
        if event == "open" and "assets" in str(arguments[0]) and str(arguments[0]).endswith(job["killed_at"]):
            os.kill(os.getpid(), signal.SIGKILL)
    if "killed_at" in job:
        sys.addaudithook(hook)
    if "arguments" in job:
        return cli.main(job["arguments"])
    pretrained("base")
    return 0

def start(job):
    if (child := os.fork()) == 0:
        status = 70
        try:
            os.dup2(2, 1)
            status = run(job)
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child

for line in sys.stdin:
    children = [start(job) for job in json.loads(line)]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.slow
def test_processes(hub, tmp_path):
    """Killed in the middle, then two at once, then the command offline: all with the converter itself."""
    home, errors = tmp_path / "home", tmp_path / "errors.txt"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        env=environment_of(hub, home) | {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors.open("w"),
        text=True,
    )

    def run(*jobs: dict) -> list[int]:
        driver.stdin.write(json.dumps(jobs) + "\n")
        driver.stdin.flush()
        return json.loads(driver.stdout.readline() or "[]")

    def kept() -> list[Path]:
        return [path for path in home.glob("assets/catseg_hf/*/base/*") if path.is_dir() and path.name[0] != "."]

    def count_conversions() -> int:
        return errors.read_text().count("Converting model_base.pth")

    assert run({"killed_at": "README.md"}) == [-9], errors.read_text()
    assert kept() == [] and len(list(home.glob("assets/catseg_hf/*/base/.*.incomplete/model.safetensors"))) == 1
    assert run({}, {}) == [0, 0], errors.read_text()
    (folder,) = kept()
    assert count_conversions() == 2 and downloads(hub) == 1  # one of them before it was killed
    assert not list(folder.parent.glob("*.incomplete"))

    count = len(hub.requests)
    command = ["segment", str(FIXTURES / "picture.png"), "--labels=cat, sofa", "--model=base", f"--output={tmp_path}"]
    assert run({"arguments": command, "offline": True}) == [0], errors.read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["model"] == str(folder)
    assert len(hub.requests) == count and count_conversions() == 2
    driver.communicate()
    assert driver.returncode == 0
