"""A whole round with a real Label Studio server on 127.0.0.1, outside CI.

python3 -m venv studio && studio/bin/pip install label-studio==1.23.0
PYTHONPATH=tests:training python tests/annotations/peers/try_label_studio.py studio/bin/label-studio OUTPUT.json

A project with four scenes of the emoji world; predictions from our ML backend, asked for by the server, compared with
the pipeline's label maps on every pixel; made to annotations; exported as JSON; prepared; compared again; trained on
for a few steps. tasks.json of `catseg-hf segment --format label_studio` is imported into a second project. The server
needs about 1 GB of memory, and a minute to start.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from catseg_hf import EMBEDDED_MODEL, cli
from catseg_hf.annotations.label_studio import labeling_config
from catseg_hf.annotations.rle import decode_label_studio
from catseg_hf.loading import load_segmenter


ROOT = Path(__file__).parents[3]
SCENES = ROOT / "tests" / "fixtures" / "emoji_world" / "images" / "gate"
LABELS = ["snow", "balloon", "water", "broccoli", "zebra", "corn"]
TOKEN = "0123456789abcdef0123456789abcdef01234567"
PORT, BACKEND_PORT = 8093, 9093
STEPS = 3


@contextmanager
def running(command: list, health: str, environment: dict[str, str], seconds: float) -> Iterator[None]:
    """A server, from when it is healthy to the end of the block."""
    with open(f"{environment['LOGS']}/{Path(command[0]).name}-{command[-1]}.log", "w") as log:
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + seconds
            while True:
                try:
                    if httpx.get(health, timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                assert process.poll() is None and time.monotonic() < end, f"{command[0]} did not start: {log.name}"
                time.sleep(1)
            yield
        finally:
            process.terminate()
            process.wait(30)


def main(label_studio: str, output: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        environment = {
            **os.environ,
            "LOGS": folder,
            "LABEL_STUDIO_API_KEY": TOKEN,
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(work),
        }
        (work / "images").mkdir()
        for name in ("000.jpg", "001.jpg", "002.jpg", "003.jpg"):
            shutil.copy(SCENES / name, work / "images")
        server = [label_studio, "start", "--no-browser", "--data-dir", work / "data", "--username", "a@example.com"]
        server += ["--password", "password", "--user-token", TOKEN, "--enable-legacy-api-token", "--port", PORT]
        backend = [sys.executable, "-m", "catseg_hf.integrations.label_studio", "--model", EMBEDDED_MODEL]
        backend += ["--device", "cpu", "--label_studio_url", f"http://127.0.0.1:{PORT}", "--port", BACKEND_PORT]
        plain = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
        with (
            running(server, f"http://127.0.0.1:{PORT}/health", plain, 300),
            running(backend, f"http://127.0.0.1:{BACKEND_PORT}/health", environment, 120),
        ):
            found = try_round(work, sorted((work / "images").iterdir()))
    print(json.dumps(found, indent=2))
    output.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def try_round(work: Path, images: list[Path]) -> dict:
    studio = httpx.Client(
        base_url=f"http://127.0.0.1:{PORT}", headers={"Authorization": f"Token {TOKEN}"}, timeout=120
    )

    def call(method: str, path: str, **options) -> dict | list:
        response = studio.request(method, path, **options)
        assert response.is_success, f"{path}: {response.status_code} {response.text[:500]}"
        return response.json() if response.content else {}

    segmenter = load_segmenter(EMBEDDED_MODEL, "cpu")
    expected = {
        path.name: segmenter(str(path), LABELS, return_segmentation_map=True)["segmentation"].numpy()
        for path in images
    }
    project = call("POST", "/api/projects", json={"title": "scenes", "label_config": labeling_config(LABELS)})["id"]
    for path in images:
        call("POST", f"/api/projects/{project}/import", files={"file": (path.name, path.read_bytes())})
    call("POST", "/api/ml", json={"url": f"http://127.0.0.1:{BACKEND_PORT}", "project": project, "title": "catseg"})
    everything = {"selectedItems": {"all": True, "excluded": []}}
    action = f"/api/dm/actions?project={project}&id="
    call("POST", f"{action}retrieve_tasks_predictions", json={**everything, "project": project})
    tasks = call("GET", f"/api/tasks?project={project}&fields=all&page_size=100")["tasks"]
    names = {task["id"]: task["data"]["image"].rsplit("-", 1)[-1] for task in tasks}
    predictions = call("GET", f"/api/predictions?project={project}")
    differing = 0
    for prediction in predictions:
        ids = np.full(expected[names[prediction["task"]]].shape, -1)
        for region in prediction["result"]:
            mask = decode_label_studio(region["value"]["rle"], ids.shape)
            ids[mask] = LABELS.index(region["value"]["brushlabels"][0])
        differing += int((ids != expected[names[prediction["task"]]]).sum())
    found = {"predictions": len(predictions), "pixels of predictions that differ": differing}

    for prediction in predictions:
        annotation = {"result": prediction["result"]}
        call("POST", f"/api/tasks/{prediction['task']}/annotations", json=annotation)
    export = work / "export.json"
    export.write_text(json.dumps(call("GET", f"/api/projects/{project}/export?exportType=JSON")))
    (work / "classes.json").write_text(json.dumps(LABELS))
    prepared = work / "prepared"
    arguments = [export, "--images", images[0].parent, "--classes", work / "classes.json", "--output", prepared]
    arguments += ["--validation_share", "0.25"]
    assert cli.main(["prepare", *map(str, arguments)]) == 0
    ids = {path.stem: np.asarray(Image.open(path)) for path in (prepared / "labels").rglob("*.png")}
    by_stem = {Path(name).stem: label_map for name, label_map in expected.items()}
    found["images prepared"] = len(ids)
    found["pixels of prepared labels that differ"] = int(
        sum((label_map != by_stem[stem[-len(images[0].stem) :]]).sum() for stem, label_map in ids.items())
    )
    train = [sys.executable, ROOT / "training" / "train.py", "--model_name_or_path", EMBEDDED_MODEL]
    train += ["--vocabulary", prepared / "classes.json", "--dataset_name", prepared, "--output_dir", work / "trained"]
    train += ["--max_train_steps", STEPS, "--per_device_train_batch_size", 1, "--no-example_images"]
    subprocess.run(list(map(str, train)), check=True)
    found["trained steps"] = STEPS if (work / "trained" / "model.safetensors").is_file() else 0

    drafts = work / "drafts"
    command = ["segment", *map(str, images), "--labels", ", ".join(LABELS), "--device=cpu", f"--output={drafts}"]
    assert cli.main([*command, "--format=label_studio"]) == 0
    config = (drafts / "label_studio" / "config.xml").read_text()
    second = call("POST", "/api/projects", json={"title": "drafts", "label_config": config})["id"]
    storage = {"project": second, "path": str(images[0].parent), "use_blob_urls": True}
    call("POST", "/api/storages/localfiles", json=storage)
    drafted = json.loads((drafts / "label_studio" / "tasks.json").read_text())
    call("POST", f"/api/projects/{second}/import", json=drafted)
    found["tasks imported from --format label_studio"] = len(
        call("GET", f"/api/tasks?project={second}&fields=all&page_size=100")["tasks"]
    )
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
