"""Segments image files batch by batch. Reading and writing go on in threads while the model runs."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..annotations.writing import AnnotationFiles
from ..errors import UserError, printable
from ..image_sources_catseg import read_pixels
from ..pipeline_catseg import OpenVocabularySegmentationPipeline
from ..tiled_image_catseg import check_tile_fits
from ..utils.processes import Processes
from .origins import Settings, describe_input
from .results import list_largest, read_result, write_result, write_summary
from .sources import choose_names


READERS, WRITERS = 2, 4
# Of images that are being written or wait for it: about 11 bytes for each, and what the writers need.
MAX_PIXELS = 2**26

Item, Value = TypeVar("Item"), TypeVar("Value")


@dataclass
class _Image:
    """
    An image on its way.

    Attributes:
        index (`int`): Its place among all.
        origin (`dict`): As [`write_result`] takes it.
        pixels (`torch.Tensor` of shape (3, H, W)): In RGB, unless it could not be read.
        num_pixels (`int`): How many these are.
        error (`str`): Why it could not be read.
        result (`dict`): What the pipeline returned for it.
        record (`dict`): What the summary says of it.
    """

    index: int
    origin: dict[str, Any]
    pixels: torch.Tensor | None = None
    num_pixels: int = 0
    error: str | None = None
    result: dict[str, Any] | None = None
    record: dict[str, Any] | None = None


class FileSegmenter:
    """
    Segments image files and writes an overlay and a label map of each.

    Args:
        segmenter ([`OpenVocabularySegmentationPipeline`]): The model with its processor.
        images (`list[str]`): Paths and URLs.
        output (`Path`): Folder for the results.
        settings ([`Settings`]): The classes to tell apart, and how it is done.
        own_vocabulary (`bool`): Whether the classes are the checkpoint's own, which come with their prompts.
        mask_generator, batch_size: As [`~OpenVocabularySegmentationPipeline.__call__`] takes them.
        annotation_files ([`AnnotationFiles`], *optional*): What else is written from the label maps when all are
            there.
    """

    def __init__(
        self,
        segmenter: OpenVocabularySegmentationPipeline,
        images: list[str],
        output: Path,
        settings: Settings,
        *,
        own_vocabulary: bool = False,
        mask_generator: Callable[[Image.Image], Any] | None = None,
        batch_size: int = 1,
        annotation_files: AnnotationFiles | None = None,
    ):
        self.segmenter, self.images, self.output, self.settings = segmenter, images, output, settings
        self.paths = [output / name for name in choose_names(images, output)]
        self.candidate_labels = None if own_vocabulary else settings.classes
        self.mask_generator, self.batch_size = mask_generator, batch_size
        self.shows_tiles = False
        self.annotation_files = annotation_files

    def run(
        self, processes: Processes, failures: list[tuple[str, str]], resume: bool = False
    ) -> list[tuple[str, str]]:
        """
        Segments what no other process does, prints a line for every image, and writes the summary of all.

        Args:
            processes ([`Processes`]): Those that share the images, on one file system.
            failures (`list[tuple[str, str]]`): What else the summary names as unreadable, each with a sentence that
                says why.
            resume (`bool`): Whether to leave out batches of images that have their results.

        Returns:
            The images that could not be read in any of the processes, in their order, each with such a sentence.

        Raises:
            UserError: If the results cannot be written, for what the pipeline refuses, and if there are results of
                other settings to go on with.
        """
        self.digests = processes.first(self.settings.digests)
        done = self._find_done(processes) if resume else {}
        starts = range(0, len(self.images), self.batch_size)
        batches = [range(start, min(start + self.batch_size, len(self.images))) for start in starts]
        # Whole ones, since other images of a batch can decide on the last bit of a result.
        left = [batch for batch in batches if not done.keys() >= set(batch)]
        segmented, unreadable = processes.each(lambda: self._segment_all(left, processes))
        for index in (index for batch in left for index in batch):
            done.pop(index, None)
        records = _merge([done, *processes.gather(segmented)])
        errors = _merge(processes.gather(unreadable))
        results = [{"image": self.images[index], **records[index]} for index in sorted(records)]
        unreadable = [(self.images[index], errors[index]) for index in sorted(errors)]
        processes.first(lambda: write_summary(self.output, self.settings, results, failures + unreadable))
        if self.annotation_files is not None:
            processes.first(lambda: self.annotation_files.write(self.output, results, self.settings.classes.names))
        return unreadable

    def _find_done(self, processes: Processes) -> dict[int, dict[str, Any]]:
        def find() -> dict[int, dict[str, Any]]:
            own = range(len(self.images))[processes.rank :: processes.size]
            results = {index: read_result(self.paths[index], self._origin(index)) for index in own}
            return {index: record for index, record in results.items() if record is not None}

        return _merge(processes.gather(processes.each(find)))

    def _segment_all(
        self, batches: list[range], processes: Processes
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """Records and errors, by the images' indices."""
        records, errors = {}, {}
        num_done = len(self.images) - sum(map(len, batches))
        disable = None if processes.is_first else True
        self.shows_tiles = processes.is_first and sys.stderr.isatty()
        with (
            tqdm(total=len(self.images), initial=num_done, unit="image", disable=disable) as progress,
            _worker_threads(READERS) as readers,
            _worker_threads(WRITERS) as writers,
        ):
            read = _map_ahead(readers, self._read, processes.take(batches), READERS)
            segmented = (image for images in read for image in self._segment(images))
            for image in _map_behind(writers, self._write, segmented, MAX_PIXELS):
                if image.error is None:
                    records[image.index] = image.record
                    shares = {segment["label"]: segment["area"] for segment in image.record["segments"]}
                    line = f"{self.images[image.index]}: {list_largest(shares)}"
                    progress.write(printable(line), file=sys.stdout)
                    sys.stdout.flush()  # as a whole line, between those of other processes
                else:
                    errors[image.index] = image.error
                progress.update(num_done + processes.add_done(1) - progress.n)
        return records, errors

    def _read(self, batch: range) -> list[_Image]:
        images = [_Image(index, self._origin(index)) for index in batch]
        for image in images:
            try:
                image.pixels = read_pixels(
                    self.images[image.index],
                    self.segmenter.processor.image_processor,
                    value_range=self.settings.value_range,
                )
                image.num_pixels = image.pixels[0].numel()
            except UserError as error:
                image.error = str(error)
        return images

    def _segment(self, images: list[_Image]) -> list[_Image]:
        readable = [image for image in images if image.error is None]
        self.segmenter.call_count = 0  # after a few calls transformers would advise to make a single one
        if self.settings.tile_size is None:
            results = self._call_pipeline([image.pixels for image in readable], batch_size=len(readable))
        else:
            results = [self._segment_tiles(image) for image in readable]
        for image, result in zip(readable, results, strict=True):
            for segment in result["segments"]:
                del segment["mask"]  # as large as the image
            image.result = result
        return images

    def _segment_tiles(self, image: _Image) -> dict[str, Any]:
        size, tile_size = tuple(image.pixels.shape[1:]), self.settings.tile_size
        if len(self.images) == 1:
            check_tile_fits(tile_size, size, f"The image {self.images[image.index]!r}")
        if tile_size > max(size):
            return self._call_pipeline(image.pixels)
        # A bar for those alone that take long.
        with tqdm(unit="tile", leave=False, delay=2, disable=not self.shows_tiles) as progress:

            def show(done: int, total: int):
                progress.total = total
                progress.update(done - progress.n)

            return self._call_pipeline(
                image.pixels,
                batch_size=self.batch_size,
                tile_size=tile_size,
                tile_overlap=self.settings.tile_overlap,
                on_tiles=show,
            )

    def _call_pipeline(self, images: torch.Tensor | list[torch.Tensor], **options: Any) -> Any:
        return self.segmenter(
            images,
            self.candidate_labels,
            threshold=self.settings.threshold,
            mask_generator=self.mask_generator,
            upsampling=self.settings.upsampling,
            return_segmentation_map=True,
            **options,
        )

    def _write(self, image: _Image) -> _Image:
        if image.error is None:
            path, pixels = self.paths[image.index], Image.fromarray(image.pixels.permute(1, 2, 0).numpy())
            has_gaps = self.settings.threshold is not None or self.settings.classes.has_background
            image.record = write_result(
                path, pixels, image.result, self.settings.classes.names, has_gaps, image.origin
            )
            image.pixels = image.result = None
        return image

    def _origin(self, index: int) -> dict[str, Any]:
        return {"settings": self.digests, "input": describe_input(self.images[index])}


def check_output(output: Path):
    """
    Raises:
        UserError: If there cannot be a folder of results.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"The output {str(output)!r} is a file, but a folder is needed.")


@contextmanager
def _worker_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end with the `with` block, of whatever it ends: what they have begun is completed."""
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _map_ahead(
    threads: ThreadPoolExecutor, function: Callable[[Item], Value], items: Iterable[Item], count: int
) -> Iterator[Value]:
    """What the function returns for each item, while `count` more are worked on or waiting."""
    waiting = deque()
    for item in items:
        waiting.append(threads.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()


def _map_behind(
    threads: ThreadPoolExecutor, function: Callable[[_Image], _Image], images: Iterable[_Image], max_pixels: int
) -> Iterator[_Image]:
    """What the function returns for each image, in their order and as soon as it is there. While those that are worked
    on or waiting have more than `max_pixels` together, no other one is asked for."""
    waiting, num_pixels = deque(), 0
    for image in images:
        waiting.append(threads.submit(function, image))
        num_pixels += image.num_pixels
        while waiting and (waiting[0].done() or num_pixels > max_pixels):
            image = waiting.popleft().result()
            num_pixels -= image.num_pixels
            yield image
    for future in waiting:
        yield future.result()


def _merge(parts: list[dict]) -> dict:
    return {key: value for part in parts for key, value in part.items()}
