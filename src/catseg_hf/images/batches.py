"""Segments batches of images that have been read, and says with which settings."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..class_words_catseg import ClassWords
from ..configuration_catseg import CATSegConfig
from ..errors import UserError
from ..guided_upsampling_catseg import check_upsampling
from ..image_pixels_catseg import check_value_range
from ..pipeline_catseg import OpenVocabularySegmentationPipeline
from ..segment_tally_catseg import check_threshold
from ..tiled_image_catseg import check_tile_overlap, check_tile_size
from ..tiles_catseg import DEFAULT_TILE_OVERLAP
from .origins import Settings


class BatchSegmenter:
    """
    Segments images by one model, as settings say.

    Args:
        segmenter ([`OpenVocabularySegmentationPipeline`]): The model with its processor.
        settings ([`Settings`]): The classes to tell apart, and how it is done.
        own_vocabulary (`bool`): Whether the classes are the checkpoint's own, which come with their prompts.
        mask_generator, batch_size: As [`~OpenVocabularySegmentationPipeline.__call__`] takes them.

    Attributes:
        shows_tiles (`bool`): Whether the tiles of an image that takes long are counted in a terminal.
    """

    def __init__(
        self,
        segmenter: OpenVocabularySegmentationPipeline,
        settings: Settings,
        *,
        own_vocabulary: bool = False,
        mask_generator: Callable[[Image.Image], Any] | None = None,
        batch_size: int = 1,
    ):
        self.segmenter, self.settings = segmenter, settings
        self.candidate_labels = None if own_vocabulary else settings.classes
        self.mask_generator, self.batch_size = mask_generator, batch_size
        self.shows_tiles = False

    @property
    def has_gaps(self) -> bool:
        """Whether pixels may be of no class."""
        return self.settings.threshold is not None or self.settings.classes.has_background

    def segment(self, images: list[torch.Tensor]) -> list[dict[str, Any]]:
        """
        Segments images together, but each for itself where there are tiles.

        Args:
            images (`list[torch.Tensor]`): Of shape (3, H, W), each of a size of its own.

        Returns:
            For each of them its `segmentation` (H, W) and its `segments`, as the pipeline gives them, without masks.

        Raises:
            UserError: For what the pipeline refuses.
        """
        self.segmenter.call_count = 0  # after a few calls transformers would advise to make a single one
        if self.settings.tile_size is None:
            results = self._call_pipeline(images, batch_size=len(images))
        else:
            results = [self._segment_tiles(image) for image in images]
        for result in results:
            for segment in result["segments"]:
                del segment["mask"]  # as large as the image
        return results

    def _segment_tiles(self, image: torch.Tensor) -> dict[str, Any]:
        if self.settings.tile_size > max(image.shape[1:]):
            return self._call_pipeline(image)
        # A bar for those alone that take long.
        with tqdm(unit="tile", leave=False, delay=2, disable=not self.shows_tiles) as progress:

            def show(done: int, total: int):
                progress.total = total
                progress.update(done - progress.n)

            return self._call_pipeline(
                image,
                batch_size=self.batch_size,
                tile_size=self.settings.tile_size,
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


def check_settings(
    config: CATSegConfig,
    model: str,
    classes: ClassWords,
    dtype: str,
    *,
    sam: str | None = None,
    threshold: float | None = None,
    value_range: tuple[float, float] | None = None,
    upsampling: str = "bilinear",
    tile_size: int | None = None,
    tile_overlap: float | None = None,
) -> Settings:
    """
    The settings of a job.

    Args:
        config ([`CATSegConfig`]): The model's.
        model, classes, dtype, sam, threshold, value_range, upsampling, tile_size, tile_overlap: As [`Settings`] takes
            them.

    Raises:
        UserError: If they do not go together, or one of them is not accepted.
    """
    if tile_overlap is not None and tile_size is None:
        raise UserError(f"--tile_overlap is {tile_overlap}, but there are no tiles: give --tile_size too.")
    if tile_size is not None:
        check_tile_size(tile_size, config)
        tile_overlap = check_tile_overlap(DEFAULT_TILE_OVERLAP if tile_overlap is None else tile_overlap)
    if threshold is not None:
        check_threshold(threshold)
    value_range = None if value_range is None else check_value_range(value_range)
    check_upsampling(upsampling)
    return Settings(model, sam, classes, threshold, value_range, dtype, upsampling, tile_size, tile_overlap)
