"""Ray Data: datasets of images, on one machine or many, into datasets of their segmentations.

dataset = read("photos/")
segment(dataset, model="base", labels="cat, sofa|couch").write_parquet("segmented/")
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
from pyarrow.fs import FileSystem
from transformers.utils import logging

from ..errors import UserError, first_line
from ..images.origins import other_settings
from ..images.rows import RowOptions
from ..images.sources import find_images, image_extensions
from ..images.tars import TAR_SUFFIXES, is_tar, read_tar
from ..utils.files import check_output_folder, locked_folder, read_json, replaced_file
from .cluster import READ_CPUS, RESUME_CPUS, Actors, check_answers, choose_actors
from .tables import TableSegmenter


try:
    import ray
    import ray.data
    from ray.data.checkpoint import CheckpointConfig
    from ray.data.datasource import FileBasedDatasource
except ImportError as error:
    raise ImportError('This needs Ray: `pip install "catseg_hf[ray]"`.') from error


logger = logging.get_logger(__name__)

ROWS_AT_ONCE = 16
FORMATS = {"images": "an image", "parquet": "a table", "webdataset": "a tar file"}
TAR_ROWS = 32  # of a block that is read
MAX_DEATHS = 10  # of actors that have the same images


def connect(address: str | None = None):
    """
    Joins a Ray cluster, or starts Ray on this machine alone; does nothing where this process has done so before.

    Args:
        address (`str`, *optional*): HOST:PORT of a cluster's head, or ray://HOST:PORT of its client server; by default
            what RAY_ADDRESS says, or else the cluster that this machine is in, or else this machine alone.

    Raises:
        UserError: If nothing answers there within a few seconds.
    """
    if ray.is_initialized():
        return
    if address is None:
        address = os.environ.get("RAY_ADDRESS") or None
    if address not in (None, "auto", "local"):
        check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"There is no Ray cluster at {address!r}: {first_line(error)}.") from error


def actor_options(actors: Actors) -> dict[str, Any]:
    """What `map_batches` takes. An actor that dies is started again, and what it was given is done
    again, up to `MAX_DEATHS` times."""
    options = {"num_cpus": actors.num_cpus, "max_restarts": -1, "max_task_retries": MAX_DEATHS}
    if actors.num_gpus:
        options["num_gpus"] = actors.num_gpus
    return {"compute": ray.data.ActorPoolStrategy(size=actors.number), **options}


def read(paths: str | Sequence[str], format: str = "images", *, filesystem: Any = None) -> ray.data.Dataset:
    """
    A dataset of encoded images, for [`segment`], which decodes them as `catseg-hf segment` does.

    Args:
        paths (`str` or `list[str]`): Files or folders, in reach of every node, or URLs such as s3://bucket/folder. Of
            folders here their own files are read, of other file systems those in subfolders too.
        format (`str`, *optional*, defaults to `"images"`): `"images"`, the image files; `"parquet"`, tables;
            `"webdataset"`, tar files, of which all images but label maps (cat.seg.png) are taken.
        filesystem (`pyarrow.fs.FileSystem` or `fsspec.AbstractFileSystem`, *optional*): Where the paths lie.

    Returns:
        `ray.data.Dataset` with the columns `path` and `bytes`; of parquet with its own. Where a tar file ends early it
        has a row with an `error`.

    Raises:
        UserError: If nothing is there to be read.
    """
    if format not in FORMATS:
        raise UserError(f"`format` is {format!r}, but one of {', '.join(map(repr, FORMATS))} is accepted.")
    paths = [str(paths)] if isinstance(paths, str | Path) else [*map(str, paths)]
    if filesystem is None:
        _check_paths(paths, format)
    options = {"filesystem": filesystem, "num_cpus": READ_CPUS}
    try:
        if format == "parquet":
            return ray.data.read_parquet(paths, **options)
        suffixes = [*_suffixes(format)]
        if filesystem is None and not any("://" in path for path in paths):
            # Here and not by Ray, which would leave out names that begin with an underscore or have a question mark.
            paths, suffixes = _list_folders(paths, format), None
        if format == "images":
            return ray.data.read_binary_files(paths, include_paths=True, file_extensions=suffixes, **options)
        source = TarDatasource(paths, filesystem=filesystem, file_extensions=suffixes)
        return ray.data.read_datasource(source, num_cpus=READ_CPUS)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"Nothing can be read at {paths!r}: {first_line(error)}.") from error


def _suffixes(format: str) -> tuple[str, ...]:
    """Of the files that are read, in small letters and with their dots; of tables whatever Ray takes for one."""
    return {"images": tuple(sorted(image_extensions())), "parquet": (), "webdataset": TAR_SUFFIXES}[format]


def _check_paths(paths: Sequence[str], format: str):
    """Refuses what Ray would leave out, with a warning at most."""
    schemes, suffixes = {}, _suffixes(format)
    for path in paths:
        is_address = "://" in path
        scheme = urlsplit(path).scheme if is_address else "file"
        is_of_web = scheme in ("http", "https")
        schemes.setdefault("http" if is_of_web else scheme, path)
        name = path.partition("?")[0] if is_address else path
        if suffixes and (is_of_web or os.path.isfile(path)) and not name.lower().endswith(suffixes):
            remedy = "name each file, since a web server's folders cannot be listed" if is_of_web else "convert it"
            raise UserError(
                f"{path!r} is no file that is read as {FORMATS[format]}, but "
                f"{', '.join(suffixes)} are: {remedy}, or leave it out."
            )
    if len(schemes) > 1:
        first, second, *_ = schemes.values()
        raise UserError(
            f"{first!r} and {second!r} are on different file systems: read each by itself, and join the datasets "
            "(`union`)."
        )
    for scheme, path in schemes.items():
        if scheme in ("file", "http", "local"):
            continue
        try:
            FileSystem.from_uri(quote(path, safe="/:?&=%@+"))
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{path!r} is on no file system that is known by its name ({first_line(error)}): give it as "
                f"`filesystem`, such as fsspec.filesystem({scheme!r})."
            ) from error


def _list_folders(paths: Sequence[str], format: str) -> list[str]:
    """The files of folders here."""
    found = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
        elif format == "webdataset":
            files = [file for file in sorted(Path(path).iterdir()) if is_tar(file)]
            found += map(os.path.abspath, files)
        else:
            images, failures = find_images([path])
            found += map(os.path.abspath, images)
            for _, error in failures:
                logger.warning(error)
    if not found:
        raise UserError(
            f"No file in {paths!r} is read as {FORMATS[format]}: name folders or files of "
            f"{', '.join(_suffixes(format))}."
        )
    return found


class TarDatasource(FileBasedDatasource):
    """Images of WebDataset's tar files, in rows with `path` (the archive's and the member's), `bytes` and `error`."""

    def resolve_compression(self, path: str, open_args: dict[str, Any]) -> str | None:
        """None: `read_tar` unpacks, and tells where an archive ends early."""
        return None

    def _read_stream(self, file: Any, path: str) -> Iterator[pa.Table]:
        rows = []
        try:
            for name, content in read_tar(file, path, image_extensions()):
                rows.append({"path": f"{path}/{name}", "bytes": content, "error": None})
                if len(rows) == TAR_ROWS:
                    yield self._table(rows)
                    rows = []
        except UserError as error:
            rows.append({"path": path, "bytes": None, "error": str(error)})
        if rows:
            yield self._table(rows)

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        schema = pa.schema([("path", pa.string()), ("bytes", pa.binary()), ("error", pa.string())])
        return pa.Table.from_pylist(rows, schema)


def segment(
    dataset: ray.data.Dataset,
    *,
    image_column: str = "bytes",
    num_actors: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    room: float = 1.0,
    **options: Any,
) -> ray.data.Dataset:
    """
    Segments the images of a dataset, each in one of several actors, which load the model and encode the labels once.

    Args:
        dataset (`ray.data.Dataset`): Such as [`read`] gives, or any with a column of images.
        image_column (`str`, *optional*, defaults to `"bytes"`): As [`~integrations.tables.TableSegmenter`] takes it.
        num_actors (`int`), num_cpus (`float`), num_gpus (`float`): As [`choose_actors`] takes them.
        room (`float`, *optional*, defaults to 1): CPUs of the cluster that stay free for a task that reads. Those of
            [`read`] need 0.25.
        options: Of [`~images.rows.RowOptions`]: `model`, `labels` and others.

    Returns:
        `ray.data.Dataset`: Lazily, the rows as [`~integrations.tables.TableSegmenter`] makes them. A damaged image is
        a row with its `error`; actors and nodes that die lose nothing.

    Raises:
        UserError: If the dataset has no such column or one of the results' names, an option is not accepted, or the
            actors would leave no CPU for reading.
    """
    checked = RowOptions(**options)
    checked.settings  # noqa: B018  refused here and not by each actor
    columns = dataset.columns() or []
    checked.check_columns([name for name in columns if name != "error"], image_column)
    actors = choose_actors(ray.nodes(), num_actors, num_cpus, num_gpus, room)
    batch_size = checked.batch_size * max(1, ROWS_AT_ONCE // checked.batch_size)
    return dataset.map_batches(
        TableSegmenter,
        batch_format="pyarrow",
        batch_size=batch_size,
        fn_constructor_kwargs={
            "image_column": image_column,
            "threads": actors.threads,
            "device": actors.device,
            **options,
        },
        **actor_options(actors),
    )


def segment_to_parquet(
    paths: str | Sequence[str],
    output: str | Path,
    *,
    format: str = "images",
    filesystem: Any = None,
    id_column: str = "path",
    resume: bool = False,
    **options: Any,
) -> ray.data.Dataset:
    """
    Reads images, segments them and writes parquet files, with Ray's own checkpoints.

    Args:
        paths, format, filesystem: As [`read`] takes them.
        output (`str` or `Path`): A folder (and no URL) in reach of every node, that does not exist yet: `segments/`
            in it has the parquet files, `checkpoint/` tells which rows are there, and settings.json what they were
            made with.
        id_column (`str`, *optional*, defaults to `"path"`): A column whose values are different in all rows.
        resume (`bool`, *optional*, defaults to `False`): Whether to go on with a job that was stopped or killed: rows
            that are there are not read again.
        options: Of [`segment`].

    Returns:
        `ray.data.Dataset` of the parquet files.

    Raises:
        UserError: What [`read`] and [`segment`] refuse; if the output is not empty, or with `resume` was made with
            other settings; if another job is writing it.
    """
    if "://" in str(output):
        raise UserError(
            f"The output is {str(output)!r}, but a folder is needed: for a bucket call `segment` and `write_parquet`, "
            "which write anew all that there is."
        )
    output = Path(output).expanduser().resolve()
    if resume and not (output / "settings.json").exists():
        check_output_folder(output, "output; resume=True goes on with a job whose settings.json is there")
    if not resume:
        check_output_folder(output, "output, or resume=True")
    with locked_folder(output), reported_errors():
        known = RowOptions(
            **{name: value for name, value in options.items() if name in RowOptions.__dataclass_fields__}
        )
        digests = {**known.settings.digests(), "class_maps": known.class_maps}
        settings = output / "settings.json"
        if settings.exists() and (differences := other_settings(read_json(settings), digests)):
            raise UserError(
                f"{output} holds results with another {', '.join(differences)}: repeat what they were made with, or "
                "name another output."
            )
        dataset = read(paths, format, filesystem=filesystem)
        columns = dataset.columns() or []
        if id_column not in columns:
            raise UserError(
                f"The dataset has no column {id_column!r}, but {', '.join(map(repr, columns)) or 'none at all'}: name "
                "one whose values are different in all rows (`id_column`)."
            )
        dataset = segment(dataset, room=READ_CPUS + RESUME_CPUS, **options)
        dataset.context.checkpoint_config = CheckpointConfig(
            id_column=id_column, checkpoint_path=str(output / "checkpoint"), delete_checkpoint_on_success=False
        )
        with replaced_file(settings) as file:
            file.write_text(json.dumps(digests, indent=2) + "\n")
        dataset.write_parquet(str(output / "segments"), ray_remote_args={"num_cpus": READ_CPUS})
    return ray.data.read_parquet(str(output / "segments"))


@contextmanager
def reported_errors() -> Iterator[None]:
    """
    Raises:
        UserError: In place of Ray's exceptions for one that was raised in an actor or a task, and for actors that die
            at the same images again and again.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        name, cause, has_died = f"{UserError.__module__}.{UserError.__qualname__}: ", error, False
        while cause is not None:  # of an actor that could not be made there is the traceback's text alone
            _, found, sentence = str(cause).rpartition(name)
            if found:
                raise UserError(sentence.strip()) from None
            # One that could not be made says so itself.
            has_died |= isinstance(cause, ray.exceptions.RayActorError) and "creation task" not in str(cause)
            cause = getattr(cause, "cause", None) or cause.__cause__
        if has_died:
            raise UserError(
                f"Actors died {MAX_DEATHS + 1} times at the same images, perhaps for want of memory: give a smaller "
                "batch size, or take very large images out."
            ) from error
        raise
