"""Builds the static page of demo/web out of an exported model and npm packages; `make web` calls it.

catseg-hf export --format onnx --output build/web-model
npm ci --ignore-scripts --prefix build/web-packages   # with demo/web's package.json and package-lock.json in it
python demo/build_web.py --model build/web-model --packages build/web-packages/node_modules --output build/web
"""

import argparse
import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catseg_hf.errors import UserError, reports_errors
from catseg_hf.export.metadata import CARD, LICENCE, NOTICE, card_licence
from catseg_hf.utils.files import built_aside, check_output_folder, read_json
from catseg_hf.visualization import class_color


DEMO = Path(__file__).parent
EXAMPLE = ("scene.png", "scene_labels.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
NOT_SERVED = ("package.json", "package-lock.json")
NUM_COLORS = 256

# Of each device ONNX Runtime's script, and the loader and the WebAssembly that the script asks for.
RUNTIMES = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded"),
    "webgpu": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify"),
}
# What the page calls the files of the graphs; small graphs have no file of weights.
GRAPHS = {"text_encoder.onnx": "the text encoder", "segmenter.onnx": "the segmenter"}
WEIGHTS = ".data"


def build(model: Path, packages: Path, output: Path, title: str | None = None):
    """
    Writes the page.

    Args:
        model (`Path`): A folder that `catseg-hf export --format onnx` wrote, of a model without the sliding window.
        packages (`Path`): npm's node_modules.
        output (`Path`): An empty folder.
        title (`str`, *optional*): What the page calls the model; by default what its card is headed with, or the name
            of its folder.

    Raises:
        UserError: If the model or a package is not what the page takes.
    """
    title = title or read_title(model)
    settings = {"model": title, **read_settings(model)}
    licence = card_licence(model / CARD) if (model / CARD).is_file() else None
    runtime, tokenizers = (find_package(packages, name) for name in ("onnxruntime-web", "@huggingface/tokenizers"))
    own = [path for path in (DEMO / "web").iterdir() if path.is_file() and path.name not in NOT_SERVED]
    for source in [*own, *(DEMO / name for name in EXAMPLE), *(model / name for name in TOKENIZER)]:
        shutil.copy(source, output)
    for name in (NOTICE, LICENCE):
        if (model / name).is_file():
            shutil.copy(model / name, output / f"model.{name}")
    write_card(output / CARD, title, licence)
    (output / "packages").mkdir()
    (output / "files").mkdir()
    shutil.copy(find_file(tokenizers, "LICENSE"), output / "packages" / "tokenizers.LICENSE")
    shutil.copy(find_file(tokenizers, "dist/tokenizers.min.mjs"), output / "packages")
    runtimes = {}
    for device, (script, stem) in RUNTIMES.items():
        for name in (script, f"{stem}.mjs"):
            shutil.copy(find_file(runtime, f"dist/{name}"), output / "packages")
        wasm = find_file(runtime, f"dist/{stem}.wasm")
        runtimes[device] = {
            "script": f"./packages/{script}",
            "loader": f"packages/{stem}.mjs",
            "wasm": packed(wasm, output, "ONNX Runtime"),
        }
    manifest = {
        "title": title,
        "licence": licence,
        "onnxruntime": read_json(runtime / "package.json")["version"],
        "runtimes": runtimes,
        "model": packed_graphs(model, output),
    }
    write_json(output / "settings.json", settings)
    write_json(output / "manifest.json", manifest)
    write_version(output)


def read_settings(model: Path) -> dict[str, Any]:
    """
    What the page has to know of a model: how it takes images and prompts, and the colours of the classes.

    Raises:
        UserError: If the folder is none that was exported, or its model looks at an image in several views.
    """
    try:
        for name in GRAPHS:
            (model / name).stat()
        processor, prompts, tokenizer = (
            read_json(model / name) for name in ("preprocessor_config.json", "processor_config.json", "tokenizer.json")
        )
        tokens = read_json(model / "tokenizer_config.json")
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        view = {
            "size": processor["image_size"],
            "mean": processor["image_mean"],
            "std": processor["image_std"],
            "scale": processor["rescale_factor"],
        }
        settings = {
            "view": view,
            "prompts": {
                "templates": prompts["prompt_templates"],
                "padding": ids[tokens.get("pad_token", tokens["eos_token"])],
                "maxLength": tokens["model_max_length"],
            },
            "colors": [class_color(index) for index in range(NUM_COLORS)],
        }
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{model} is no folder of `catseg-hf export --format onnx` ({type(error).__name__}: {error}): export one."
        ) from None
    if processor["sliding_window"]:
        raise UserError(
            f"The model of {model} looks at an image in several views (sliding_window), which the page does not: "
            "export one without, such as the model that comes with the package."
        )
    return settings


def read_title(model: Path) -> str:
    """What an exported model is called: by the first heading of its card, or as its folder."""
    text = (model / CARD).read_text(encoding="utf-8") if (model / CARD).is_file() else ""
    heading = re.search(r"^# (.*\S)", text, flags=re.MULTILINE)
    return heading[1] if heading else model.resolve().name


def write_card(path: Path, title: str, licence: str | None):
    """Makes the page's card in the place of a static Space, `README.md`, one that names the model and its licence."""
    terms = "" if licence is None else f"license: {json.dumps(licence)}\n"
    text = re.sub(r"^license: .*\n", lambda _: terms, path.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    path.write_text(f"{text}\nThe model is {title}.\n", encoding="utf-8")


def find_package(packages: Path, name: str) -> Path:
    """
    Raises:
        UserError: If it is not there.
    """
    if not (packages / name / "package.json").is_file():
        raise UserError(f"{packages} has no package {name}: run `npm ci` with demo/web's package.json (make web).")
    return packages / name


def find_file(package: Path, name: str) -> Path:
    """
    Raises:
        UserError: If the package has no such file.
    """
    if not (package / name).is_file():
        raise UserError(f"{package} has no {name}: install the version that demo/web/package-lock.json names.")
    return package / name


def packed_graphs(model: Path, output: Path) -> list[dict[str, Any]]:
    """Writes the graphs, and their weights where these have files of their own; returns their entries."""
    entries = []
    for name, title in GRAPHS.items():
        entries.append(packed(model / name, output, title))
        if (weights := model / f"{name}{WEIGHTS}").is_file():
            entries.append(packed(weights, output, f"{title}'s weights"))
    return entries


def packed(source: Path, output: Path, title: str) -> dict[str, Any]:
    """Writes a file in gzip's format, under a name that no server unpacks on its way; returns its entry in the
    manifest."""
    data = gzip.compress(source.read_bytes(), mtime=0)
    path = f"files/{source.name}.packed"
    (output / path).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return {"name": source.name, "title": title, "path": path, "bytes": len(data), "sha256": digest}


def write_json(path: Path, value: Any):
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def write_version(output: Path):
    """Lists the page's own files for its service worker, with a version that changes when one of them does."""
    large = output / "files"
    files = sorted(path for path in output.rglob("*") if path.is_file() and large not in path.parents)
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    kept = [path.relative_to(output).as_posix() for path in files if path.suffix not in (".md", ".LICENSE", ".NOTICE")]
    page = {"version": digest.hexdigest()[:16], "files": ["./", *kept]}
    (output / "version.js").write_text(f"self.PAGE = {json.dumps(page)};\n", encoding="utf-8")


@reports_errors
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder that `catseg-hf export --format onnx` wrote")
    parser.add_argument("--packages", type=Path, required=True, help="node_modules that npm wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--title", help="what the page calls the model (by default as its card is headed)")
    options = parser.parse_args(arguments)
    output = check_output_folder(options.output, "--output")
    with built_aside(output) as aside:
        build(options.model, options.packages, aside, options.title)
    print(f"Wrote {output}: serve it with `python demo/serve_web.py {options.output}`.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
