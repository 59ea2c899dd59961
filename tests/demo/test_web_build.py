"""What the browser's page is built of, and how it is served; npm and a browser are not needed."""

import gzip
import hashlib
import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import yaml
from huggingface_hub.utils import httpx

import build_web
import serve_web
from catseg_hf import EMBEDDED_MODEL
from catseg_hf.visualization import class_color
from catseg_testing.page_server import PageServer
from conftest import ROOT
from serve_web import HEADERS


SOURCE = ROOT / "demo" / "web"
PACKAGES = {
    "onnxruntime-web": [
        name for script, stem in build_web.RUNTIMES.values() for name in (script, f"{stem}.mjs", f"{stem}.wasm")
    ],
    "@huggingface/tokenizers": ["tokenizers.min.mjs"],
}


@pytest.fixture
def packages(tmp_path) -> Path:
    """npm's node_modules with what is taken of them."""
    for package, files in PACKAGES.items():
        folder = tmp_path / "node_modules" / package
        (folder / "dist").mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"version": "1.2.3"}))
        (folder / "LICENSE").write_text("free")
        for name in files:
            (folder / "dist" / name).write_text(f"{name} " * 100)
    return tmp_path / "node_modules"


@pytest.fixture
def model(tmp_path) -> Path:
    """What the page reads of an exported folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("processor_config.json", *build_web.TOKENIZER):
        shutil.copy(Path(EMBEDDED_MODEL) / name, folder)
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    for name in build_web.GRAPHS:
        (folder / name).write_bytes(name.encode() * 100)
    return folder


def run(model: Path, packages: Path, output: Path, *options: str) -> int:
    return build_web.main(["--model", str(model), "--packages", str(packages), "--output", str(output), *options])


def names_and_terms(page: Path) -> list[str | None]:
    """The model's title and licence wherever the page has them."""
    manifest, settings = (json.loads((page / f"{name}.json").read_text()) for name in ("manifest", "settings"))
    front_matter, text = (page / "README.md").read_text().split("---")[1:]
    assert f"The model is {manifest['title']}." in text and settings["model"] == manifest["title"]
    assert yaml.safe_load(front_matter).get("license") == manifest["licence"]
    return [manifest["title"], manifest["licence"]]


def test_the_manifest_and_the_settings(model, packages, tmp_path):
    page = tmp_path / "page"
    assert run(model, packages, page) == 0
    manifest = json.loads((page / "manifest.json").read_text())
    assert manifest["onnxruntime"] == "1.2.3"
    for entry in [*manifest["model"], *(runtime["wasm"] for runtime in manifest["runtimes"].values())]:
        data = (page / entry["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    packed = {entry["name"]: page / entry["path"] for entry in manifest["model"]}
    assert gzip.decompress(packed["segmenter.onnx"].read_bytes()) == (model / "segmenter.onnx").read_bytes()
    settings = json.loads((page / "settings.json").read_text())
    assert settings["view"]["size"] == 128 and settings["prompts"]["maxLength"] == 77
    assert settings["prompts"]["padding"] == 1009
    assert settings["colors"][5] == list(class_color(5))


CARD = "---\nlicense: cc-by-4.0\n---\nSee below.\n\n# Streets  \n\n# Data\n"


def test_title_and_licence_are_the_models(model, packages, tmp_path):
    page, named, plain, broken = (tmp_path / name for name in ("page", "named", "plain", "broken"))
    (model / "README.md").write_text(CARD)
    for name in ("NOTICE", "LICENSE"):
        (model / name).write_text(f"the model's {name}")
    assert run(model, packages, page) == 0
    assert names_and_terms(page) == ["Streets", "cc-by-4.0"]
    for name in ("NOTICE", "LICENSE"):
        assert (page / f"model.{name}").read_text() == f"the model's {name}"
        (model / name).unlink()

    assert run(model, packages, named, "--title=Roads: all") == 0
    assert names_and_terms(named) == ["Roads: all", "cc-by-4.0"]
    (model / "README.md").write_text("---\nlicense: [\n---\n# Streets\n")
    assert run(model, packages, broken) == 0
    assert names_and_terms(broken) == ["Streets", None]
    (model / "README.md").unlink()
    assert run(model, packages, plain) == 0
    assert names_and_terms(plain) == ["model", None]
    assert not list(plain.glob("model.*"))


def test_all_small_files_are_kept_for_visits_without_a_network(model, packages, tmp_path):
    def kept(page: Path) -> dict:
        return json.loads((page / "version.js").read_text().removeprefix("self.PAGE = ").removesuffix(";\n"))

    first, second = tmp_path / "first", tmp_path / "second"
    assert run(model, packages, first) == 0
    files = kept(first)["files"]
    assert {"./", "main.js", "manifest.json", "packages/ort.wasm.min.mjs", "scene.png", "tokenizer.json"} <= set(files)
    assert not any(name.startswith("files/") for name in files)
    assert all((first / name).exists() for name in files)
    (model / "segmenter.onnx").write_bytes(b"another")
    assert run(model, packages, second) == 0
    assert kept(first)["version"] != kept(second)["version"]


def test_modules_import_each_other_and_packages_that_are_there(model, packages, tmp_path):
    page = tmp_path / "page"
    assert run(model, packages, page) == 0
    for script in page.glob("*.js"):
        for target in re.findall(r'from "(.+)";', script.read_text()):
            assert (page / target).is_file(), f"{script.name}: {target}"


def test_versions_are_pinned():
    package, lock = (json.loads((SOURCE / name).read_text()) for name in ("package.json", "package-lock.json"))
    for name, version in package["dependencies"].items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version


def test_a_static_space_sends_the_headers_of_the_server():
    metadata = yaml.safe_load((SOURCE / "README.md").read_text().split("---")[1])
    headers = {name.lower(): value for name, value in HEADERS.items() if name.startswith("Cross-Origin")}
    assert metadata["sdk"] == "static" and metadata["app_file"] == "index.html"
    assert headers.items() <= metadata["custom_headers"].items() and len(headers) == 2


def test_headers_and_types(tmp_path):
    for name in ("index.html", "module.mjs", "weights.onnx.packed"):
        (tmp_path / name).write_text("x")
    with PageServer(tmp_path) as server:
        answers = {name: httpx.get(server.url + name) for name in ("", "module.mjs", "weights.onnx.packed")}
    for answer in answers.values():
        assert (
            answer.status_code == 200
            and HEADERS.items() <= {name: answer.headers.get(name) for name in HEADERS}.items()
        )
    assert answers["module.mjs"].headers["Content-Type"].startswith("text/javascript")
    assert "Content-Encoding" not in answers["weights.onnx.packed"].headers


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("segmenter.onnx", "no folder of `catseg-hf export --format onnx`"),
        ("preprocessor_config.json", "no folder of `catseg-hf export --format onnx`"),
        ("package", "has no package onnxruntime-web: run `npm ci`"),
        ("file", "has no dist/ort-wasm-simd-threaded.mjs: install the version"),
        ("sliding_window", "looks at an image in several views"),
    ],
)
def test_what_is_refused(broken, sentence, model, packages, tmp_path, capsys):
    if broken == "package":
        shutil.rmtree(packages / "onnxruntime-web")
    elif broken == "file":
        (packages / "onnxruntime-web" / "dist" / "ort-wasm-simd-threaded.mjs").unlink()
    elif broken == "sliding_window":
        settings = json.loads((model / "preprocessor_config.json").read_text())
        (model / "preprocessor_config.json").write_text(json.dumps({**settings, "sliding_window": True}))
    else:
        (model / broken).unlink()
    assert run(model, packages, tmp_path / "page") == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "page" / "index.html").exists()


def test_ports_that_cannot_be_used(tmp_path, monkeypatch, capsys):
    (tmp_path / "index.html").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (taken.getsockname()[1], 65536):
            monkeypatch.setattr("sys.argv", ["serve_web.py", str(tmp_path), "--port", str(port)])
            with pytest.raises(SystemExit):
                serve_web.main()
            assert f"port {port} cannot be used" in capsys.readouterr().err
