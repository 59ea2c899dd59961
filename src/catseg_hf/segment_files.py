"""Segments image files one after the other and writes what was found."""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from .errors import UserError
from .image_files import choose_name, identity
from .pipeline_catseg import OpenVocabularySegmentationPipeline, read_pixels
from .results import list_largest, write_result


def segment_files(
    segmenter: OpenVocabularySegmentationPipeline,
    images: list[str],
    output: Path,
    labels: list[str],
    *,
    own_vocabulary: bool = False,
    threshold: float | None = None,
    mask_generator: Callable[[Image.Image], Any] | None = None,
    batch_size: int = 1,
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """
    Segments images, writes an overlay and a label map of each, and prints a line.

    Args:
        segmenter ([`OpenVocabularySegmentationPipeline`]): The model with its processor.
        images (`list[str]`): Their paths and URLs.
        output (`Path`): Folder for the results.
        labels (`list[str]`): The classes to tell apart.
        own_vocabulary (`bool`): Whether these are the checkpoint's own, which come with their prompts.
        threshold, mask_generator, batch_size: As [`~OpenVocabularySegmentationPipeline.__call__`] takes them.

    Returns:
        What the summary says of each image, and the images that cannot be read, each with a sentence that says so.

    Raises:
        UserError: If the results cannot be written, or for what the pipeline refuses.
    """
    inputs = {identity(image) for image in images}
    names, records, unreadable, waiting = set(), [], [], deque()
    with tqdm(total=len(images), unit="image", disable=None) as progress:

        def read() -> Iterator[torch.Tensor]:
            for source in images:
                try:
                    pixels = read_pixels(source, segmenter.processor.image_processor)
                except UserError as error:
                    unreadable.append((source, str(error)))
                    progress.update()
                    continue
                waiting.append((source, pixels))
                yield pixels

        results = segmenter(
            read(),
            None if own_vocabulary else labels,
            batch_size=batch_size,
            threshold=threshold,
            mask_generator=mask_generator,
            return_segmentation_map=True,
        )
        for result in results:
            source, pixels = waiting.popleft()
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            path = output / choose_name(source, output, names, inputs)
            record = write_result(path, image, result, labels, threshold is not None)
            records.append({"image": source, **record})
            shares = {segment["label"]: segment["area"] for segment in record["segments"]}
            progress.write(f"{source}: {list_largest(shares)}", file=sys.stdout)
            progress.update()
    return records, unreadable
