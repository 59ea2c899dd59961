"""`catseg-hf segment --engine ray`: the files of one job, shared by Ray's actors instead of processes of our own."""

import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..images.segmentation import Engine, FileSegmenter, ImageInWork
from .cluster import Actors
from .ray_data import actor_options, ray, reported_errors


IMAGES_AT_ONCE = 16


class FileActor:
    """
    Segments batches of files; its job is made once.

    Args:
        folder (`str`): Where relative paths lead from.
        make_job (`Callable`): Gives the job, without images.
        threads (`int`): CPU threads of this process.
        digests (`dict[str, str]`): Of the job's settings.
        is_of_one_image (`bool`): Whether the job has one image alone.

    Raises:
        UserError: If the folder is not there on this node.
    """

    def __init__(
        self,
        folder: str,
        make_job: Callable[[], FileSegmenter],
        threads: int,
        digests: dict[str, str],
        is_of_one_image: bool,
    ):
        try:
            os.chdir(folder)
        except OSError as error:
            raise UserError(
                f"The folder {folder!r} is not there on a node of the Ray cluster ({error.strerror}): run the command "
                "where all nodes have the same files."
            ) from error
        torch.set_num_threads(threads)
        self.job, self.digests = make_job(), digests
        self.job.is_of_one_image = is_of_one_image

    def __call__(self, table: dict[str, Any]) -> dict[str, list]:
        """Batches of images, as JSON, into the index, the record and the error of each image."""
        batches, images, paths, indices = [], [], [], []
        for row in map(json.loads, table["batch"]):
            batches.append(range(len(images), len(images) + len(row["images"])))
            images += row["images"]
            paths += map(Path, row["paths"])
            indices += row["indices"]
        part = self.job.part(images, paths, self.digests)
        done = [(indices[image.index], image.record, image.error) for image in part.segment(batches)]
        return {"image": [json.dumps(image) for image in done]}


def make_engine(job: FileSegmenter, make_job: Callable[[], FileSegmenter], actors: Actors) -> Engine:
    """
    What [`FileSegmenter.run`] takes for an engine.

    Args:
        job ([`FileSegmenter`]): Of all images.
        make_job (`Callable`): Makes one of none, in an actor; it is pickled.
        actors ([`~integrations.cluster.Actors`]): Those that share the images, on one file system.
    """

    def engine(batches: list[range]) -> Generator[ImageInWork, None, None]:
        if not batches:
            return
        rows = [
            {
                "batch": json.dumps(
                    {
                        "indices": list(batch),
                        "images": [job.images[index] for index in batch],
                        "paths": [str(job.paths[index]) for index in batch],
                    }
                )
            }
            for batch in batches
        ]
        # Small enough for all actors to be done at about the same time.
        at_once = max(1, min(IMAGES_AT_ONCE // job.batch_size, len(rows) // (4 * actors.number)))
        dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // at_once))
        dataset = dataset.map_batches(
            FileActor,
            batch_size=at_once,
            fn_constructor_kwargs={
                "folder": os.getcwd(),
                "make_job": make_job,
                "threads": actors.threads,
                "digests": job.digests,
                "is_of_one_image": job.is_of_one_image,
            },
            **actor_options(actors),
        )
        dataset.context.enable_progress_bars = False  # the command has a bar of its own
        with reported_errors():
            for row in dataset.iter_rows():
                index, record, error = json.loads(row["image"])
                yield ImageInWork(index, {}, record=record, error=error)

    return engine
