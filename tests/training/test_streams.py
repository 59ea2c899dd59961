"""Streams: every image once in a pass, the same images after a kill, and tar files of WebDataset."""

import io
import shutil
import signal
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Features, Image, Value
from PIL import Image as PillowImage

from catseg_hf.errors import UserError
from catseg_testing.tiny_training import CLASSES, QUICK, TrainingDriver, run_train, save_checkpoint, weights
from catseg_training.data.batches import StreamedBatches
from catseg_training.data.columns import find_columns
from catseg_training.data.crops import StreamingCrops, idle_workers
from catseg_training.data.examples import read_example
from catseg_training.data.sources import load_segmentation_data
from catseg_training.data.tar_shards import tar_shards


SIZE = 4


def encoded(array: np.ndarray, image_format: str = "png") -> bytes:
    file = io.BytesIO()
    PillowImage.fromarray(array).save(file, format=image_format)
    return file.getvalue()


def label_of(number: int) -> np.ndarray:
    return np.full((SIZE, SIZE), number, np.uint8)


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def pair(name: str, number: int) -> dict[str, bytes]:
    image = np.stack([40 * label_of(number)] * 3, axis=-1)
    return {f"{name}.jpg": encoded(image, "jpeg"), f"{name}.seg.png": encoded(label_of(number))}


def write_shards(folder: Path, sizes: list[int]) -> Path:
    """Images whose label is their number, in tar files of different lengths."""
    number = 0
    for place, size in enumerate(sizes):
        files = {}
        for _ in range(size):
            files |= pair(f"scene.{number}", number)
            number += 1
        write_tar(folder / f"train-{place:03}.tar", files)
    return folder


def batches_of(source: Path, rank: int, world_size: int, num_workers: int, batch_size: int = 3) -> StreamedBatches:
    stream = load_segmentation_data(source, "train", streaming=True)
    mean = [0.5, 0.5, 0.5]
    crops = StreamingCrops(stream, 100, SIZE, mean, mean, 0, color_jitter=False, rank=rank, world_size=world_size)
    accelerator = SimpleNamespace(process_index=rank, device=torch.device("cpu"))
    return StreamedBatches(crops, batch_size, accelerator, num_workers)


def passes_of(batches: StreamedBatches, count: int) -> list[list[int]]:
    """The numbers of the images of the first passes, each longer than a batch."""
    passes = [[]]
    batches.start(0)
    while len(passes) <= count:
        numbers = next(batches)["labels"].amin(dim=(1, 2)).tolist()
        assert len(numbers) == batches.batch_size
        current, num_taken = batches.position()
        if current == len(passes):
            passes[-1] += numbers[:-num_taken]
            passes.append(numbers[-num_taken:])
        else:
            passes[-1] += numbers
    return passes[:count]


@pytest.mark.parametrize(
    "sizes, world_size, num_workers",
    [
        ([5, 6, 7, 4], 1, 0),
        ([5, 6, 7, 4], 2, 2),  # a shard for each worker
        ([8, 7, 8], 2, 0),  # shards that cannot be dealt out evenly
        ([8, 7, 8], 2, 2),
        ([12], 1, 2),  # fewer shards than workers
    ],
)
def test_every_image_once_in_a_pass(sizes, world_size, num_workers, tmp_path):
    source = write_shards(tmp_path, sizes)
    shares = [passes_of(batches_of(source, rank, world_size, num_workers), 2) for rank in range(world_size)]
    orders = [[number for share in shares for number in share[place]] for place in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(sum(sizes)))
    assert orders[0] != orders[1]


def test_pass_that_is_shorter_than_a_batch(tmp_path):
    batches = batches_of(write_shards(tmp_path, [2]), 0, 1, 0, batch_size=5)
    batches.start(0)
    numbers = [number for _ in range(4) for number in next(batches)["labels"].amin(dim=(1, 2)).tolist()]
    assert batches.position() == [9, 2]
    assert [sorted(numbers[start : start + 2]) for start in range(0, 20, 2)] == [[0, 1]] * 10


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_goes_on_at_the_right_image(num_workers, tmp_path):
    source = write_shards(tmp_path, [4, 5, 3])
    whole = batches_of(source, 1, 2, num_workers)
    whole.start(0)
    expected, positions = [], []
    for _ in range(6):
        positions.append(whole.position())
        expected.append(next(whole))
    assert whole.position()[0] > 1
    for step, position in list(enumerate(positions))[:: 1 + num_workers]:
        resumed = batches_of(source, 1, 2, num_workers)
        resumed.start(step, position)
        for batch in expected[step : step + 3]:
            found = next(resumed)
            assert all(torch.equal(found[name], batch[name]) for name in batch), step


def test_stream_that_has_become_shorter(tmp_path):
    batches = batches_of(write_shards(tmp_path, [4]), 0, 1, 0)
    with pytest.raises(UserError, match="fewer images.*than it had taken from it, 5"):
        batches.start(3, [1, 5])


def test_stream_without_an_image_for_a_process(tmp_path):
    batches = batches_of(write_shards(tmp_path, [1]), 1, 2, 0)
    batches.start(0)
    with pytest.raises(UserError, match="Process 1 finds no image"):
        next(batches)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((4, 2, 2), None),
        ((5, 1, 0), None),
        ((2, 1, 3), "has 2 shards for 3 workers: 1 of them have nothing to do. --dataloader_num_workers 2"),
        ((2, 2, 2), "has 2 shards for 4 workers: 2 of them have nothing to do. --dataloader_num_workers 1"),
        ((3, 2, 2), "has 3 shards for 4 workers: each of 2 processes reads all of it"),
        ((1, 2, 0), "has 1 shard for 2 workers: each of 2 processes reads all of it"),
    ],
)
def test_fewer_shards_than_workers(arguments, message):
    warning = idle_workers(*arguments)
    assert (warning is None) if message is None else message in warning


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("mode, suffix", [("w", ".tar"), ("w:gz", ".tar.gz")])
def test_tar_files(streaming, mode, suffix, tmp_path):
    """Stems with dots and folders, other files beside the pairs, labels before images, PNG images."""
    files = pair("a/scene.v1.left", 1) | {"a/scene.v1.left.json": b"{}", "a/._scene.jpg": b"?"}
    files |= {"b.1.seg.png": encoded(label_of(2)), "b.1.PNG": encoded(np.stack([label_of(9)] * 3, axis=-1))}
    write_tar(tmp_path / f"train-0{suffix}", files, mode)
    write_tar(tmp_path / f"train-1{suffix}", pair("b.1", 3), mode)
    write_tar(tmp_path / f"val-0{suffix}", pair("c", 4), mode)
    options = {"streaming": streaming, "cache_dir": str(tmp_path / "cache")}
    rows = list(load_segmentation_data(tmp_path, "train", **options))
    examples = [read_example(row, 100) for row in rows]
    assert [int(label.min()) for _, label in examples] == [int(label.max()) for _, label in examples] == [1, 2, 3]
    assert [int(image[0, 0, 0]) for image, _ in examples] == [40, 9, 120]
    assert rows[0]["name"] == f"a/scene.v1.left of {tmp_path / f'train-0{suffix}'}"
    assert len(list(load_segmentation_data(tmp_path, "validation", **options))) == 1
    assert len(list(load_segmentation_data(tmp_path / f"train-1{suffix}", "any", **options))) == 1


def test_tar_file_that_was_made_anew(tmp_path):
    """Its copy in the cache is not taken for it."""
    numbers = []
    for number in (1, 2):
        path = write_tar(tmp_path / "train.tar", pair("a", number))
        rows = load_segmentation_data(path, "train", cache_dir=str(tmp_path / "cache"))
        numbers.append(int(read_example(rows[0], 100)[1].max()))
    assert numbers == [1, 2]


def test_splits_of_tar_files(tmp_path):
    write_tar(tmp_path / "train" / "b.tar", {})
    write_tar(tmp_path / "train" / "a.tgz", {}, "w:gz")
    write_tar(tmp_path / "val-0.tar", {})
    assert [path.name for path in tar_shards(tmp_path, "train")] == ["a.tgz", "b.tar"]
    assert [path.name for path in tar_shards(tmp_path, "validation")] == ["val-0.tar"]
    assert tar_shards(tmp_path / "nothing", "train") == []
    with pytest.raises(UserError, match="for the split 'test': it has val-0.tar. Name them test-000.tar"):
        tar_shards(tmp_path, "test")
    with pytest.raises(UserError, match="no configuration and no columns"):
        load_segmentation_data(tmp_path, "train", image_column="jpg")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "place, rest, num_read",
    [
        ("a.jpg", 100, 0),  # in a header
        ("a.jpg", 512 + 100, 0),  # in a file
        ("a.seg.png", 0, 0),  # between the two of a sample
        ("b.jpg", 0, 1),  # between samples
        ("b.jpg", 100, 1),
        ("end", 0, 2),  # before the end mark
    ],
)
def test_tar_file_that_ends_early(streaming, place, rest, num_read, tmp_path):
    """Python's tarfile takes most of these for whole."""
    path = write_tar(tmp_path / "train.tar", pair("a", 1) | pair("b", 2))
    with tarfile.open(path) as file:
        offsets = {member.name: member.offset for member in file} | {"end": file.offset}
    path.write_bytes(path.read_bytes()[: offsets[place] + rest])
    with pytest.raises(UserError, match=f"{path}' ends early or is damaged, behind {num_read} image") as error:
        list(load_segmentation_data(path, "train", streaming=streaming, cache_dir=str(tmp_path / "cache")))
    assert "Copy it again" in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "missing, message",
    [("a.seg.png", "has no label a.seg.png beside 'a'"), ("b.jpg", "has no image of b beside 'b'")],
)
def test_tar_file_without_a_part(streaming, missing, message, tmp_path):
    files = pair("a", 1) | pair("b", 2)
    del files[missing]
    path = write_tar(tmp_path / "train.tar", files)
    with pytest.raises(UserError, match=message):
        list(load_segmentation_data(path, "train", streaming=streaming, cache_dir=str(tmp_path / "cache")))


def test_tar_file_with_other_images(tmp_path):
    """Between an image and its label, such as its depth; two images of one sample are refused."""
    files = pair("scene.1", 1)
    image, label = files
    other = {"scene.1.depth.png": files[label]}
    path = write_tar(tmp_path / "train-0.tar", {image: files[image], **other, label: files[label]})
    rows = list(load_segmentation_data(path, "train", streaming=True))
    assert [row["image"]["bytes"] for row in rows] == [files[image]]
    path = write_tar(path, {image: files[image], "scene.1.png": files[label], label: files[label]})
    with pytest.raises(UserError, match="two images of the sample 'scene.1', the second is 'scene.1.png'"):
        list(load_segmentation_data(path, "train", streaming=True))


def test_tar_file_without_pairs(tmp_path):
    path = write_tar(tmp_path / "train-0.tar", {"readme.txt": b""})
    with pytest.raises(UserError, match=r"no pairs in .*train-0.tar: tar files with NAME.jpg and NAME.seg.png"):
        load_segmentation_data(path, "train", cache_dir=str(tmp_path / "cache"))


def test_compressed_tar_file_that_is_damaged(tmp_path):
    files = {"scene.1.jpg": "".join(map(str, range(100_000))).encode()}
    path = write_tar(tmp_path / "train-0.tar.gz", files, mode="w:gz")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:] = bytes(byte ^ 0x5A for byte in data[middle:])
    path.write_bytes(data)
    with pytest.raises(UserError, match="ends early or is damaged, behind 0 images"):
        list(load_segmentation_data(path, "train", streaming=True))


def test_tar_files_beside_others(tmp_path):
    """Of a split whose name only begins alike, and beside tables, which are read."""
    write_tar(tmp_path / "trainval-0.tar", {})
    with pytest.raises(UserError, match="no tar files for the split 'train': it has trainval-0.tar"):
        tar_shards(tmp_path, "train")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-0.parquet").write_bytes(b"")
    assert tar_shards(tmp_path, "train") == []
    write_tar(tmp_path / "train_0.tar", {})
    assert [path.name for path in tar_shards(tmp_path, "train")] == ["train_0.tar"]


def test_columns_of_webdatasets_on_the_hub():
    features = Features(
        {"jpg": Image(), "seg.png": Image(), "json": {"a": Value("int64")}, "__key__": Value("string")}
    )
    assert find_columns(features, "data") == ["jpg", "seg.png"]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("stream")
    write_training_shards(folder / "data")
    checkpoint = save_checkpoint(folder / "checkpoint")
    return ["--model_name_or_path", checkpoint, "--dataset_name", folder / "data", *QUICK, "--streaming"]


def write_training_shards(folder: Path):
    generator, number = np.random.default_rng(0), 0
    for place, size in enumerate((3, 2, 4)):
        files = {}
        for _ in range(size):
            label = generator.integers(0, len(CLASSES), (6, 7), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            image = np.stack([40 * label, 255 - 30 * label, 10 * label], axis=-1)
            files |= {f"s.{number}.png": encoded(image), f"s.{number}.seg.png": encoded(label)}
            number += 1
        write_tar(folder / f"train-{place}.tar", files)
    shutil.copyfile(folder / "train-0.tar", folder / "validation-0.tar")


def test_training_on_tar_files(command, tmp_path):
    arguments = ["--max_train_steps", 2, "--per_device_train_batch_size", 2, "--skip_evaluation"]
    assert run_train(*command, *arguments, "--output_dir", tmp_path / "out") == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_stream_of_two_processes_resumed(command, tmp_path):
    """Killed inside a pass, with two workers each: the same weights in the end."""
    arguments = [*command, "--max_train_steps", 8, "--per_device_train_batch_size", 2, "--skip_evaluation"]
    arguments += ["--checkpointing_steps", 2, "--dataloader_num_workers", 2]
    with TrainingDriver() as driver:
        complete = driver.run(*arguments, "--output_dir", tmp_path / "complete", world_size=2)
        assert complete["status"] == [0, 0], complete["stderr"]
        assert "has 3 shards for 4 workers: each of 2 processes reads all of it" in complete["stderr"]
        resume = [*arguments, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest"]
        killed = driver.run(*resume, world_size=2, killed_at=int(0.5 * complete["changes"]), killed_after=0.1)
        assert killed["status"] == [-signal.SIGKILL] * 2
        assert list((tmp_path / "out").glob("checkpoint-*"))
        result = driver.run(*resume, world_size=2)
        assert result["status"] == [0, 0], result["stderr"]
    assert weights(tmp_path / "out") == weights(tmp_path / "complete")
