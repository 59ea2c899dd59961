"""Segments videos: frame by frame, with probabilities averaged over time."""

from .audio import check_audio_output
from .files import VideoReader, VideoWriter, check_video_output
from .segmentation import DamagedVideoError, FrameSegmenter, TemporalAverage, VideoSummary, legend_path, segment_video


__all__ = [
    "DamagedVideoError",
    "FrameSegmenter",
    "TemporalAverage",
    "VideoReader",
    "VideoSummary",
    "VideoWriter",
    "check_audio_output",
    "check_video_output",
    "legend_path",
    "segment_video",
]
