"""Segments videos: frame by frame, with probabilities averaged over time."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..class_words_catseg import ClassWords, read_classes
from ..errors import UserError
from ..guided_upsampling_catseg import as_guide, check_upsampling
from ..pipeline_catseg import OpenVocabularySegmentationPipeline
from ..sliding_window_catseg import finite_logit
from ..utils.files import replaced_file
from ..visualization import area_shares, draw_legend, overlay_segmentation
from .files import VideoReader, VideoWriter, check_video_output


DEFAULT_SMOOTHING = 0.2
THUMBNAIL_SIZE = (16, 16)
CUT_DIFFERENCE = 0.1


class DamagedVideoError(UserError):
    """Not all of a video could be read. What was read has been segmented and written."""


@dataclass
class VideoSummary:
    """
    What a segmented video shows.

    Args:
        num_frames (`int`): How many frames were written.
        shares (`dict[int, float]`): Class indices, -1 for no class, and their shares of the area of all frames in
            (0, 1], largest first.
    """

    num_frames: int
    shares: dict[int, float]


class TemporalAverage:
    """
    Exponential average over time of the probabilities of successive frames, which begins anew at every cut.

    A frame counts for 1 - exp(-t / `time_constant`), where t are the seconds since the one before, so that the average
    does not depend on the frame rate. A cut is where the 16 x 16 thumbnails of two successive frames differ by more
    than a tenth of the range on average.

    Args:
        time_constant (`float`): Seconds after which what was seen counts for 1 / e; 0 averages nothing.

    Raises:
        UserError: If it is negative or not finite.
    """

    def __init__(self, time_constant: float):
        if not 0 <= time_constant < math.inf:
            raise UserError(
                f"The smoothing is {time_constant}, but a number of seconds that is not negative is needed."
            )
        self.time_constant = time_constant
        self._mean = self._thumbnail = self._time = None

    def __call__(self, probabilities: torch.Tensor, image: Image.Image, time: float) -> torch.Tensor:
        """The average of `probabilities`, of any shape, and those of the frames before; `image` is the frame in RGB,
        `time` its time in seconds."""
        thumbnail = np.asarray(image.resize(THUMBNAIL_SIZE, Image.Resampling.BOX), dtype=np.float32) / 255
        if self._mean is None or np.abs(thumbnail - self._thumbnail).mean() > CUT_DIFFERENCE:
            self._mean = probabilities
        else:
            decay = math.exp((self._time - time) / self.time_constant) if self.time_constant else 0.0
            self._mean = torch.lerp(probabilities, self._mean, decay)
        self._thumbnail, self._time = thumbnail, time
        return self._mean


class FrameSegmenter:
    """
    Segments the frames of one video, in their order. The text features are computed once.

    Args:
        segmenter ([`OpenVocabularySegmentationPipeline`]): The model with its processor.
        labels (`str`, `Sequence[str]` or [`ClassWords`]): The classes to tell apart, as
            [`~OpenVocabularySegmentationPipeline.__call__`] takes them.
        sliding_window (`bool`, *optional*): As [`~OpenVocabularySegmentationPipeline.__call__`] takes it.
        threshold (`float`, *optional*): As well.
        smoothing (`float`, *optional*, defaults to 0.2): `time_constant` of the [`TemporalAverage`].
        background_labels, upsampling: As [`~OpenVocabularySegmentationPipeline.__call__`] takes them.

    Raises:
        ValueError: For what [`CATSegProcessor.encode_vocabulary`] and [`TemporalAverage`] refuse.
    """

    def __init__(
        self,
        segmenter: OpenVocabularySegmentationPipeline,
        labels: "str | Sequence[str] | ClassWords",
        sliding_window: bool | None = None,
        threshold: float | None = None,
        smoothing: float = DEFAULT_SMOOTHING,
        background_labels: str | Sequence[str] | None = None,
        upsampling: str = "bilinear",
    ):
        self.segmenter, self.sliding_window, self.threshold = segmenter, sliding_window, threshold
        self.upsampling = check_upsampling(upsampling)
        self.classes = read_classes(labels, background_labels)
        self.average = TemporalAverage(smoothing)
        with torch.inference_mode():
            input_ids = segmenter.processor.encode_vocabulary(self.classes.words)
            self.text_embeds = segmenter.model.get_text_embeds(input_ids)

    @torch.inference_mode()
    def __call__(self, image: Image.Image, time: float) -> torch.Tensor:
        """
        Args:
            image (`PIL.Image.Image`): The frame, in RGB.
            time (`float`): When it is shown, in seconds.

        Returns:
            `torch.LongTensor` of shape (H, W): the index of every pixel's class, -1 for none.
        """
        model, processor = self.segmenter.model, self.segmenter.processor
        kwargs = {} if self.sliding_window is None else {"sliding_window": self.sliding_window}
        inputs = processor(images=image, **kwargs).to(model.device, model.dtype)
        outputs = model(**inputs, text_embeds=self.text_embeds, sliding_window=self.sliding_window)
        outputs.logits = finite_logit(self.average(outputs.logits.float().sigmoid(), image, time))
        size = [(image.height, image.width)]
        guides = [as_guide(image)] if self.upsampling == "guided" else None
        ((segmentation, probability),) = processor.image_processor.post_process_most_probable_class(
            outputs, size, guides
        )
        segmentation = self.classes.merge_segmentation(segmentation)
        return segmentation if self.threshold is None else segmentation.masked_fill(probability < self.threshold, -1)


def segment_video(
    segmenter: OpenVocabularySegmentationPipeline,
    video: VideoReader,
    output: str | os.PathLike,
    labels: "str | Sequence[str] | ClassWords",
    sliding_window: bool | None = None,
    threshold: float | None = None,
    smoothing: float = DEFAULT_SMOOTHING,
    opacity: float = 0.6,
    background_labels: str | Sequence[str] | None = None,
    upsampling: str = "bilinear",
) -> VideoSummary:
    """
    Writes a video under its segmentation, with the size, orientation, times and audio that it had, and beside it
    NAME_legend.png, the colours of the classes. One frame is worked on at a time. Of what the file holds beside its
    first video stream and its audio, such as subtitles, nothing is kept.

    Args:
        segmenter, labels, sliding_window, threshold, smoothing, background_labels, upsampling: As for
            [`FrameSegmenter`].
        video ([`VideoReader`]): The video.
        output (`str` or `PathLike`): A file that does not exist yet: .mp4, .mov or .mkv.
        opacity (`float`, *optional*, defaults to 0.6): Of the colours, between 0 and 1.

    Returns:
        [`VideoSummary`].

    Raises:
        DamagedVideoError: If not all of the video could be read. The output has the frames that could.
        UserError: If the output cannot be written, or has to be of another format for the audio. There is none then.
        ValueError: For what [`FrameSegmenter`] refuses, and an opacity out of range.
    """
    output = Path(output)
    check_video_output(output)
    segment_frame = FrameSegmenter(
        segmenter, labels, sliding_window, threshold, smoothing, background_labels, upsampling
    )
    num_frames, sums = 0, Counter()
    with (
        replaced_file(output) as aside,
        VideoWriter(aside, output, video) as writer,
        tqdm(total=video.num_frames, unit="frame", disable=None) as progress,
    ):
        for frame in video.read_frames(writer.copy_audio):
            segmentation = segment_frame(frame.image, float(frame.pts * video.time_base))
            writer.write(frame, overlay_segmentation(frame.image, segmentation, opacity))
            sums.update(area_shares(segmentation))
            num_frames += 1
            progress.update()
    shares = {index: share / num_frames for index, share in sums.most_common()}
    with replaced_file(legend_path(output)) as aside:
        draw_legend(shares, segment_frame.classes.names, frame.image.size).save(aside, format="PNG")
    if not video.is_whole():
        raise DamagedVideoError(
            f"The video {str(video.path)!r} is damaged or ends too early: the {num_frames} frames that could be read "
            f"are in {str(output)!r}."
        )
    return VideoSummary(num_frames, shares)


def legend_path(output: Path) -> Path:
    """Where the legend of a segmented video is."""
    return output.with_name(f"{output.stem}_legend.png")
