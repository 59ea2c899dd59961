"""Jobs on Ray: the bytes of plain processes, whatever is killed, damaged or asked for twice."""

import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from catseg_hf import cli
from catseg_hf.errors import UserError
from catseg_hf.utils.files import locked_folder
from catseg_testing.loopback import LoopbackServer
from catseg_testing.mixed_images import WORDS, save_quick_model, write_mixed_images
from catseg_testing.range_server import RangeRequests


ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
from catseg_hf.integrations import ray_data  # noqa: E402  needs Ray
from catseg_hf.integrations.tables import TableSegmenter  # noqa: E402


NUM_IMAGES = 26
SECONDS = 300  # for what happens soon if it happens at all


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_quick_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def cluster():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_mixed_images(folder, NUM_IMAGES)
    return folder


@pytest.fixture(scope="module")
def expected(images, model, tmp_path_factory) -> dict[str, np.ndarray]:
    """The class maps that the command writes, by the images' names."""
    return class_maps(run_plainly(images, model, tmp_path_factory.mktemp("expected")))


def command(images: Path, model: str, output: Path) -> list[str]:
    options = ["--labels", ", ".join(WORDS), "--model", model, "--output", output, "--device=cpu"]
    return ["segment", *map(str, [images, *options])]


def run_plainly(images: Path, model: str, output: Path) -> Path:
    assert cli.main(command(images, model, output)) == 1
    return output


def class_maps(output: Path) -> dict[str, np.ndarray]:
    records = json.loads((output / "summary.json").read_text())["images"]
    return {Path(record["image"]).name: np.asarray(Image.open(output / record["labels"])) for record in records}


def check_rows(rows: list[dict], expected: dict[str, np.ndarray], num_images: int = NUM_IMAGES):
    names = [Path(row["path"]).name for row in rows]
    assert len(rows) == num_images and set(Counter(names).values()) == {1}
    for name, row in zip(names, rows, strict=True):
        if name in expected:
            assert row["error"] is None
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["class_map"]))), expected[name]), name
        else:
            assert row["error"] and row["class_map"] is None


def contents(folder: Path, written_to: Path | None = None) -> dict[str, bytes]:
    """The files by their names, as if the folder were another."""
    own, other = (str(path or folder).encode() for path in (folder, written_to))
    return {path.name: path.read_bytes().replace(own, other) for path in folder.iterdir()}


def test_an_actor_is_killed(model, tmp_path):
    """The command on two actors, one of which dies: every byte is that of one plain process."""
    images = tmp_path / "images"
    images.mkdir()
    write_mixed_images(images, 200)
    complete = run_plainly(images, model, tmp_path / "plain")
    output = tmp_path / "ray"
    options = ["--engine=ray", "--actors=2", "--actor_cpus=0.75"]
    process = subprocess.Popen(
        [sys.executable, "-m", "catseg_hf.cli", *command(images, model, output), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local"},
    )
    deadline = time.monotonic() + SECONDS
    while not output.is_dir() or len(list(output.glob("*_labels.png"))) < 20:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    actors = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "FileActor" in "".join(child.cmdline())
    ]
    assert len(actors) == 2
    actors[0].send_signal(signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, stderr
    assert contents(output) == contents(complete, written_to=output)
    assert stdout.count(f"\n{images}") + stdout.startswith(str(images)) == 180
    assert "Segmented 180 images" in stdout and stderr.count("could not be read") == 20


def test_sources(cluster, images, tmp_path):
    """Folders, parquet, tar files and a file system of fsspec give the bytes of the files."""
    files = {path.name: path.read_bytes() for path in images.iterdir()}
    pq.write_table(pa.table({"path": list(files), "bytes": list(files.values())}), tmp_path / "table.parquet")
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for path in sorted(images.iterdir())[shard::2]:
                tar.add(path, path.name)
    sources = [
        ray_data.read(str(images)),
        ray_data.read(str(images), filesystem=fsspec.filesystem("local")),
        ray_data.read(str(tmp_path / "table.parquet"), "parquet"),
        ray_data.read([str(tmp_path / f"{shard}.tar") for shard in range(2)], "webdataset"),
    ]
    for dataset in sources:
        assert {Path(row["path"]).name: row["bytes"] for row in dataset.take_all()} == files
        assert dataset.count() == NUM_IMAGES


class SilentRequests(RangeRequests):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def site(images, tmp_path) -> Iterator[str]:
    """The address of a web server with the images, and with a tar file of them."""
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(images, "images")
    for path in images.iterdir():
        shutil.copy(path, tmp_path)
    with LoopbackServer(partial(SilentRequests, directory=str(tmp_path))) as server:
        yield server.url


def test_a_web_server(cluster, segmenter, images, expected, site, tmp_path):
    """Tar files and images of other machines, through fsspec; what Ray would leave out is refused."""
    remote = fsspec.filesystem("http")
    for options in ({}, {"filesystem": remote}):
        rows = ray_data.read(f"{site}/images.tar", "webdataset", **options).take_all()
        assert {row["path"]: row["bytes"] for row in rows} == {
            f"{site}/images.tar/images/{path.name}": path.read_bytes() for path in images.iterdir()
        }
    paths = [f"{site}/{path.name}" for path in images.iterdir()]
    rows = ray_data.segment(ray_data.read(paths), model=segmenter.options.model, labels=WORDS, num_actors=1, room=0.25)
    check_rows(rows.take_all(), expected)
    for wrong, format, words in (
        (f"{site}/none.tar", "webdataset", "Nothing can be read at .*none.tar"),
        ([*paths, f"{site}/images/"], "images", "name each file, since a web server's folders cannot be listed"),
        ([f"{site}/images.tar", f"{site}/images"], "webdataset", "is no file that is read as a tar file, but .tar"),
        ([*paths, str(images)], "images", "are on different file systems: read each by itself"),
        ([f"{site}/images.tar", "memory://images.tar"], "webdataset", "are on different file systems"),
        ("memory://images.tar", "webdataset", r"give it as `filesystem`, such as fsspec.filesystem\('memory'\)"),
        (["file:///images.tar", str(tmp_path / "000.jpg")], "webdataset", "000.jpg' is no file that is read as a tar"),
    ):
        with pytest.raises(UserError, match=words):
            ray_data.read(wrong, format)
    assert len(ray_data.read(f"file://{tmp_path}/images.tar", "webdataset").take_all()) == NUM_IMAGES


def test_odd_names(cluster, images, tmp_path):
    """Of which Ray by itself leaves out some, without a word."""
    for name in ("what?.jpg", "_0.jpg", "a#b.jpg", "a%20b.jpg"):
        shutil.copy(images / "000.jpg", tmp_path / name)
    paths = sorted(str(path) for path in tmp_path.iterdir())
    for source in (str(tmp_path), paths):
        assert sorted(row["path"] for row in ray_data.read(source).take_all()) == paths
    for path in paths:
        with tarfile.open(path[:-3] + "tar", "w") as tar:
            tar.add(path, "0.jpg")
    tars = [path[:-3] + "tar" for path in paths]
    for source in (str(tmp_path), tars):
        rows = ray_data.read(source, "webdataset").take_all()
        assert sorted(row["path"] for row in rows) == [f"{tar}/0.jpg" for tar in tars]
    (tmp_path / "empty").mkdir()
    for format, words in (("images", "read as an image: name"), ("webdataset", "read as a tar file: name")):
        with pytest.raises(UserError, match=words):
            ray_data.read(str(tmp_path / "empty"), format)


@pytest.fixture(scope="module")
def segmenter(model) -> TableSegmenter:
    return TableSegmenter(model=model, labels=WORDS, device="cpu")


def test_arrays_of_read_images(cluster, segmenter, images):
    """Palettes are refused, colours are taken, in batches of different sizes."""
    paths = [str(images / name) for name in ("000.jpg", "001.png", "006.gif", "018.png")]
    dataset = ray.data.read_images(paths, include_paths=True, num_cpus=0.25)
    segmenter.image_column = "image"
    for batch_size in (1, 4):
        errors = {}
        for batch in dataset.iter_batches(batch_size=batch_size, batch_format="pyarrow"):
            errors |= {Path(row["path"]).name: row["error"] for row in segmenter(batch).to_pylist()}
        assert errors["000.jpg"] is errors["018.png"] is None
        assert all("indices of a palette" in errors[name] for name in ("001.png", "006.gif"))
    segmenter.image_column = "bytes"


def test_a_shard_that_ends_early(cluster, segmenter, images, expected, tmp_path):
    whole, cut = io.BytesIO(), tmp_path / "cut.tar"
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for path in sorted(images.iterdir())[:3]:
            tar.add(path, path.name)
        end = tar.offset
    cut.write_bytes(whole.getvalue()[:end])
    rows = segmenter(ray_data.read(str(cut), "webdataset").take_batch(batch_format="pyarrow")).to_pylist()
    assert len(rows) == 4 and rows[-1]["path"] == str(cut)
    assert "ends early or is damaged, behind 3 images" in rows[-1]["error"]
    check_rows(rows[:3], expected, num_images=3)
    packed = tmp_path / "cut.tar.gz"
    packed.write_bytes(gzip.compress(whole.getvalue())[:-60])
    rows = ray_data.read(str(packed), "webdataset").take_all()
    assert rows[-1]["path"] == str(packed) and "ends early or is damaged" in rows[-1]["error"]
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(UserError, match="cut.parquet"), ray_data.reported_errors():
        ray_data.read(str(tmp_path / "cut.parquet"), "parquet").take_all()


JOB = """
import sys
import ray
from catseg_hf.integrations.ray_data import segment_to_parquet

images, output, model, *resume = sys.argv[1:]
ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
segment_to_parquet(
    images, output, model=model, labels="grass, water, snow", num_actors=2, num_cpus=0.75, resume=bool(resume)
)
"""


def test_a_job_is_killed_and_resumed(model, images, expected, tmp_path):
    output = tmp_path / "out"
    arguments = [sys.executable, "-c", JOB, str(images), str(output), model]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + SECONDS
    while not list((output / "segments").glob("*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    process.kill()
    process.wait()
    written = {path: path.stat().st_mtime_ns for path in (output / "segments").glob("*.parquet")}
    done = subprocess.run([*arguments, "resume"], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    check_rows(pq.read_table(output / "segments").to_pylist(), expected)
    assert all(path.stat().st_mtime_ns == changed for path, changed in written.items() if path.exists())


NODES = """
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from catseg_hf import cli
from catseg_hf.integrations import ray_data

way, num_cpus, images, output, model = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=int(num_cpus)) for _ in range(2)]
cluster.wait_for_nodes()
raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}


def results():
    return [*Path(output).glob("*.parquet"), *Path(output).glob("*_labels.png")]


def seconds_of_actor(raylet):
    actor = next(
        child
        for child in psutil.Process(raylet).children()
        if any(name in " ".join(child.cmdline()) for name in ("TableSegmenter", "FileActor"))
    )
    return actor.cpu_times().user


def kill_a_node():
    while len(results()) < 2:
        time.sleep(0.01)
    while True:
        for raylet, node in raylets.items():
            seconds = seconds_of_actor(raylet)
            time.sleep(0.2)
            if seconds_of_actor(raylet) > seconds + 0.02:
                cluster.remove_node(node, allow_graceful=False)
                print(f"killed behind {len(results())} results.", flush=True)
                return


killer = threading.Thread(target=kill_a_node, daemon=True)
killer.start()
if way == "table":
    ray.init(cluster.address, log_to_driver=False)
    dataset = ray_data.segment(
        ray_data.read(images).repartition(16),
        model=model,
        labels="grass, water, snow",
        num_actors=2,
        num_cpus=0.75,
        room=0.25,
    )
    dataset.write_parquet(output, ray_remote_args={"num_cpus": 0.25})
else:
    options = ["--device=cpu", "--engine=ray", "--actors=2", "--actor_cpus=0.75", f"--ray_address={cluster.address}"]
    command = ["segment", images, "--labels=grass, water, snow", f"--model={model}", f"--output={output}"]
    assert cli.main([*command, *options]) == 1
killer.join()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.parametrize(("way", "num_cpus"), [("table", 3), ("files", 1)])
def test_a_node_is_killed(way, num_cpus, model, tmp_path, monkeypatch):
    """One of two that work, with room for its actor on the other and without. Every image is there once."""
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    write_mixed_images(images, 128)
    expected = run_plainly(images, model, tmp_path / "plain")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Where Ray keeps the address of the cluster in use; its sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        done = subprocess.run(
            [sys.executable, "-c", NODES, way, str(num_cpus), str(images), str(output), model],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "RAY_TMPDIR": folder},
        )
    assert done.returncode == 0, done.stderr
    killed_behind = int(re.search(r"killed behind (\d+) results", done.stdout)[1])
    if way == "table":
        assert killed_behind < len(list(output.glob("*.parquet")))
        check_rows(pq.read_table(output).to_pylist(), class_maps(expected), num_images=128)
    else:
        assert killed_behind < 100
        assert contents(output) == contents(expected, written_to=output)


def test_jobs_that_are_refused(cluster, model, images, tmp_path):
    def segment(output: Path, **options):
        return ray_data.segment_to_parquet(
            str(images), output, **{"model": model, "labels": WORDS, "num_actors": 1, **options}
        )

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "settings.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty"):
        segment(tmp_path / "full")
    with pytest.raises(UserError, match="holds results with another model, labels"):
        segment(tmp_path / "full", resume=True)
    with locked_folder(tmp_path / "busy"), pytest.raises(UserError, match="Another run is writing"):
        segment(tmp_path / "busy")
    with pytest.raises(UserError, match="no column 'photo', but 'bytes', 'path'"):
        segment(tmp_path / "column", image_column="photo")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        segment(tmp_path / "other", resume=True)
    with pytest.raises(UserError, match="'s3://bucket/x', but a folder is needed"):
        segment("s3://bucket/x")
    with pytest.raises(UserError, match="no column 'name', but 'bytes', 'path'"):
        segment(tmp_path / "ids", id_column="name")
    with pytest.raises(UserError, match="notes.txt' is no file that is read as an image"):
        ray_data.read([str(next(images.iterdir())), str(tmp_path / "other" / "notes.txt")])
    with pytest.raises(UserError, match="give each at most 0.75 CPUs"):
        segment(tmp_path / "cpus", num_cpus=2.0)
    with pytest.raises(UserError, match="Nothing can be read at"):
        ray_data.segment_to_parquet(str(tmp_path / "none"), tmp_path / "out", model=model)
    assert not list(tmp_path.glob("*/segments"))


def test_actors_that_die_again_and_again():
    for error, expected in (
        (ray.exceptions.RayActorError(error_msg="The actor died unexpectedly."), UserError),
        (ray.exceptions.RayActorError(error_msg="The actor died because of an error in its creation task."), None),
    ):
        outer = RuntimeError("of Ray Data")
        outer.__cause__ = error
        with pytest.raises(expected or RuntimeError) as raised, ray_data.reported_errors():
            raise outer
        assert (raised.value is outer) == (expected is None)
    assert ray_data.actor_options(ray_data.Actors(1, 1.0))["max_task_retries"] == ray_data.MAX_DEATHS


def test_a_label_that_no_actor_takes(cluster, model, images):
    segmented = ray_data.segment(
        ray_data.read(str(images)), model=model, labels=["grass " * 90], num_actors=1, num_cpus=0.75
    )
    with pytest.raises(UserError, match="grass grass"), ray_data.reported_errors():
        segmented.take_all()
