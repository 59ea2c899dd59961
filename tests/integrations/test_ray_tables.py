"""What Ray Data calls, without Ray: tables, tar files, and what is asked of a cluster."""

import copy
import gzip
import io
import itertools
import socket
import tarfile

import pyarrow as pa
import pytest
import torch

from catseg_hf.errors import UserError
from catseg_hf.images.rows import RESULT_COLUMNS
from catseg_hf.images.tars import read_tar
from catseg_hf.integrations import cluster
from catseg_hf.integrations.tables import TableSegmenter
from catseg_testing.mixed_images import WORDS, mixed_images, save_quick_model


NUM_IMAGES = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_quick_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def segmenter(model) -> TableSegmenter:
    return TableSegmenter(model=model, labels=WORDS, device="cpu")


@pytest.fixture
def table() -> pa.Table:
    files = mixed_images(NUM_IMAGES)
    return pa.table({"path": list(files), "bytes": list(files.values()), "id": range(NUM_IMAGES)})


def test_tables(segmenter, table):
    result = segmenter(table)
    assert result.column_names == ["path", "id", *RESULT_COLUMNS]
    assert result.column("id").to_pylist() == list(range(NUM_IMAGES))
    rows = result.to_pylist()
    assert [row["error"] is None for row in rows] == [True] * 5 + [False, True]
    expected = segmenter.segmenter.segment(table.column("bytes").to_pylist())
    assert [{name: row[name] for name in RESULT_COLUMNS} for row in rows] == expected


def test_every_table_has_the_same_schema(segmenter, table):
    schemas = [segmenter(part).schema for part in (table.slice(0, 1), table.slice(5, 1), table.slice(0, 0))]
    assert schemas[0] == schemas[1] == schemas[2]


def test_errors_of_the_reading_are_kept(segmenter, table):
    expected = segmenter(table).to_pylist()
    table = table.append_column("error", pa.array([None, "The archive ends early.", *[None] * 5]))
    rows = segmenter(table).to_pylist()
    assert rows[1]["error"] == "The archive ends early." and rows[1]["class_map"] is None
    assert rows[0] == expected[0] and rows[2:] == expected[2:]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_paths_are_kept(kind, segmenter, tmp_path):
    """Also as other libraries than Ray store them."""
    (tmp_path / "0.png").write_bytes(mixed_images(1).popitem()[1])
    paths = pa.array([str(tmp_path / "0.png"), str(tmp_path / "missing.png")], kind)
    segmenter = copy.copy(segmenter)
    segmenter.image_column = "path"
    result = segmenter(pa.table({"path": paths}))
    assert result.column("path").to_pylist() == paths.to_pylist()
    assert [error is None for error in result.column("error").to_pylist()] == [True, False]


def test_an_empty_error_is_none(segmenter, table):
    expected = segmenter(table)
    for errors in (pa.array([""] * NUM_IMAGES), pa.nulls(NUM_IMAGES)):
        assert segmenter(table.append_column("error", errors)) == expected
    with pytest.raises(UserError, match="column 'error' of double, but text is needed"):
        segmenter(table.append_column("error", pa.array([0.0] * NUM_IMAGES)))


def test_columns_are_refused(segmenter, table):
    with pytest.raises(UserError, match="no column 'bytes', but 'path', 'id'"):
        segmenter(table.drop_columns(["bytes"]))
    with pytest.raises(UserError, match="has a column 'height'"):
        segmenter(table.rename_columns(["path", "bytes", "height"]))


def test_threads(model):
    before = torch.get_num_threads()
    try:
        TableSegmenter(model=model, labels=WORDS, device="cpu", threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def archive(mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name in ("a/0.jpg", "a/0.seg.png", "a/0.json", "a/._1.jpg", "a/1.JPG", "a/2.png"):
            member = tarfile.TarInfo(name)
            member.size = 600
            tar.addfile(member, io.BytesIO(name.encode().ljust(600)))
    return file.getvalue()


SUFFIXES = {".jpg", ".png"}
NAMES = ["a/0.jpg", "a/1.JPG", "a/2.png"]


def read_until_error(data: bytes) -> tuple[list[str], str | None]:
    names = []
    try:
        for name, content in read_tar(io.BytesIO(data), "shard.tar", SUFFIXES):
            assert content == name.encode().ljust(600)
            names.append(name)
    except UserError as error:
        return names, str(error)
    return names, None


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_files(mode):
    assert read_until_error(archive(mode)) == (NAMES, None)


@pytest.mark.parametrize("end", [6 * 1536, 5 * 1536, 5 * 1536 + 512, 5 * 1536 + 600, 4 * 1536 + 100, 0])
def test_tar_files_that_end_early(end):
    """Without an end mark, between two members, in a header, in a member, and at once."""
    names, error = read_until_error(archive()[:end])
    assert names == NAMES[: 3 if end == 6 * 1536 else 2 if end >= 5 * 1536 else 1 if end else 0]
    assert "'shard.tar' ends early or is damaged" in error and f"behind {len(names)} image" in error


def test_a_tar_file_that_another_reader_unpacks():
    """Such as Arrow, whose errors are of the operating system."""

    class File(io.BytesIO):
        def read(self, size=-1):
            if not (data := super().read(size)):
                raise OSError("Truncated compressed stream")
            return data

    with pytest.raises(UserError, match="ends early or is damaged, behind 1 image: Truncated compressed stream"):
        list(read_tar(File(archive()[: 4 * 1536]), "shard.tar", SUFFIXES))


def test_names_of_images_in_tar_files():
    """Up to their last dot; label maps are none, nor is what begins with a dot."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("photo.v2.jpg", "a.SEG.png", "a.seg.jpg", "a.json", ".b.jpg", "c"):
            tar.addfile(tarfile.TarInfo(name))
    names = [name for name, _ in read_tar(io.BytesIO(file.getvalue()), "shard.tar", SUFFIXES)]
    assert names == ["photo.v2.jpg", "a.seg.jpg"]


def test_a_compressed_tar_file_that_ends_early():
    """What is there is read, up to the last whole image."""
    names, error = read_until_error(archive("w:gz")[:-60])
    assert "'shard.tar' ends early or is damaged" in error
    packed = gzip.compress(archive(), compresslevel=0)
    for end, expected in ((5 * 1536 + 600, 2), (-1, 3)):
        names, error = read_until_error(packed[:end])
        assert names == NAMES[:expected] and "unexpected end of the compressed data" in error


def test_a_compressed_tar_file_with_other_bytes():
    """Which deflate does not notice in JPEGs, stored as they are, but gzip's sums do."""
    packed = bytearray(gzip.compress(archive(), compresslevel=0))
    packed[packed.index(b"a/0.json ") + 100] ^= 1
    _, error = read_until_error(bytes(packed))
    assert "'shard.tar' ends early or is damaged" in error and "incorrect data check" in error


def test_a_compressed_tar_file_of_several_parts():
    """As by bgzip, or by `cat` of what `split` and gzip made, filled up with zeros."""
    whole = archive()
    packed = b"".join(gzip.compress(whole[start : start + 1000]) for start in range(0, len(whole), 1000))
    assert read_until_error(packed + bytes(512)) == (NAMES, None)


def nodes(*resources: dict) -> list[dict]:
    return [{"Alive": True, "Resources": own} for own in resources] + [{"Alive": False, "Resources": {"CPU": 99}}]


@pytest.mark.parametrize(
    ("resources", "asked", "expected"),
    [
        ([{"CPU": 2}], {}, (2, 0.87, 0)),
        ([{"CPU": 2}], {"number": 2, "num_cpus": 0.75}, (2, 0.75, 0)),
        ([{"CPU": 16, "GPU": 8}], {}, (8, 1, 1)),
        ([{"CPU": 16, "GPU": 8}], {"num_gpus": 0.5}, (16, 0.98, 0.5)),
        ([{"CPU": 2}, {"CPU": 2}], {"number": 3}, (3, 1, 0)),
        ([{"CPU": 2}, {"CPU": 2}], {"number": 4}, (4, 0.87, 0)),
        ([{"CPU": 2}], {"room": 1.25}, (2, 0.37, 0)),
        ([{"CPU": 1}] * 8, {"room": 1.0}, (7, 1, 0)),
        ([{"CPU": 2}, {"CPU": 2}], {"number": 3, "room": 1.0}, (3, 1, 0)),
        ([{"CPU": 4, "GPU": 3}] * 2, {"num_gpus": 2.0}, (2, 1, 2)),
        ([{"CPU": 64}, {"CPU": 4, "GPU": 4}], {}, (4, 1, 1)),
        ([{"CPU": 4, "GPU": 1}] * 2, {"num_gpus": 0.1}, (20, 0.37, 0.1)),
    ],
)
def test_actors_leave_cpus_for_reading(resources, asked, expected):
    actors = cluster.choose_actors(nodes(*resources), **asked)
    assert (actors.number, actors.num_cpus, actors.num_gpus) == expected
    assert actors.threads == 1 and actors.device == (None if expected[2] else "cpu")


@pytest.mark.parametrize(
    ("resources", "asked", "words"),
    [
        ([{"CPU": 2}], {"number": 1, "num_cpus": 2.0}, "give each at most 1.75 CPUs"),
        ([{"CPU": 2}], {"number": 2, "num_cpus": 1.0}, "leave too few of the Ray cluster's 2 CPUs"),
        ([{"CPU": 2}, {"CPU": 2}], {"number": 2, "num_cpus": 2.0}, "give each at most 1.75 CPUs"),
        ([{"CPU": 2}], {"number": 200}, "too few for so many"),
        ([{"CPU": 2}], {"number": 0}, "at least 1 is needed"),
        ([{"CPU": 2}], {"num_gpus": 1.0}, "more than 0: give fewer"),
        ([{"CPU": 4, "GPU": 1}] * 4, {"num_gpus": 2.0}, "no node of the Ray cluster has more than 1: give fewer"),
        ([{"CPU": 4, "GPU": 3}] * 2, {"num_gpus": 2.0, "number": 3}, "have room for 2: give at most 2"),
        ([{"CPU": 4, "GPU": 4}], {"num_gpus": -1.0}, "Each actor is to have -1 GPUs, but 0, a share"),
        ([{"CPU": 4, "GPU": 4}], {"num_gpus": 1.5}, "Each actor is to have 1.5 GPUs, but 0, a share"),
        ([{"CPU": 64}, {"CPU": 4, "GPU": 4}], {"num_cpus": 8.0}, "give each at most 1 CPUs"),
        ([{"CPU": 1}] * 8, {"room": 1.0, "number": 8}, "give at most 7 (`num_actors`"),
        ([{"CPU": 1}], {"room": 1.0}, "No node of the Ray cluster has more than 1 CPUs, which are to stay free"),
        ([{"CPU": 2}], {"number": 1, "num_cpus": 0.0}, "`num_cpus` is 0"),
    ],
)
def test_actors_that_reserve_all_cpus_are_refused(resources, asked, words):
    with pytest.raises(UserError) as error:
        cluster.choose_actors(nodes(*resources), **asked)
    assert words in str(error.value)


def test_what_is_offered_is_accepted():
    for count in (1, 2, 3, 7):
        with pytest.raises(UserError) as error:
            cluster.choose_actors(nodes({"CPU": 4}, {"CPU": 2}), number=count, num_cpus=5.0)
        most = float(str(error.value).partition("at most ")[2].split()[0])
        assert cluster.choose_actors(nodes({"CPU": 4}, {"CPU": 2}), number=count, num_cpus=most).num_cpus == most


@pytest.mark.parametrize("number", [1, 3, 6, 9])
@pytest.mark.parametrize("room", [0.25, 1.0])
def test_a_node_has_room_however_actors_are_spread(number, room):
    cpus = (4, 2, 1)
    each = cluster.choose_actors(nodes(*({"CPU": own} for own in cpus)), number, room=room).num_cpus
    for spread in itertools.product(range(number + 1), repeat=len(cpus)):
        free = [own - each * count for own, count in zip(cpus, spread, strict=True)]
        if sum(spread) == number and min(free) >= 0:
            assert max(free) >= room


def test_addresses(monkeypatch):
    """Refused in a bounded time: what is no address, where nothing listens, and where no Ray does."""
    monkeypatch.setattr(cluster, "SECONDS", 0.5)
    monkeypatch.setattr(cluster, "SECONDS_TO_JOIN", 0.5)
    for address in ("[head:6379", "head", "head:port", "ray://", ":1"):
        with pytest.raises(UserError, match="HOST:PORT"):
            cluster.check_answers(address)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=rf"Nothing answers at the Ray address '127.0.0.1:{port}' within 0.5 s"):
            cluster.check_answers(f"127.0.0.1:{port}")
        server.listen()
        with pytest.raises(UserError, match=f"'127.0.0.1:{port}' is no Ray cluster .* within 0.5 s"):
            cluster.check_answers(f"127.0.0.1:{port}")
