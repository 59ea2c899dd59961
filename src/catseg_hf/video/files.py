"""Reads and writes videos through PyAV: one frame at a time in sRGB, and audio as it is."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import logging
from typing_extensions import Self

from ..errors import UserError
from .audio import FORMATS, check_audio_output
from .clock import Clock
from .colors import BT709_TAGS, is_ordinary, srgb_pixels, unusual_color_tags
from .file_sizes import stated_size


try:
    import av
except ImportError:  # the extra "video"
    av = None


logger = logging.get_logger(__name__)

# In the order of preference; the options ask for no visible loss.
ENCODERS = {"libx264": {"crf": "18"}, "mpeg4": {"flags": "+qscale", "global_quality": "236"}}
MPEG4_LARGEST_DENOMINATOR = 65535  # of a time base
COLOR_TAGS = ("colorspace", "color_range", "color_primaries", "color_trc")
STILL_FORMATS = ("image2", "_pipe", "tty")  # images and text, which FFmpeg plays as well

# Seconds by which a whole file may end before the duration that it states.
MAX_SHORTFALL = 0.5


@dataclass(frozen=True)
class Orientation:
    """
    How stored frames are turned to be seen, in one of the eight ways that keep pixels on their grid.

    Args:
        matrix (`tuple[int, ...]`): The display matrix, nine numbers row by row.
    """

    matrix: tuple[int, ...]

    @property
    def _swaps_axes(self) -> bool:
        return abs(self.matrix[1]) > abs(self.matrix[0])

    @property
    def _steps(self) -> tuple[int, int]:
        """Down and to the right in the upright frame, -1 or 1 in the stored one."""
        down, right = (self.matrix[1], self.matrix[3]) if self._swaps_axes else (self.matrix[4], self.matrix[0])
        return (-1 if down < 0 else 1), (-1 if right < 0 else 1)

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Stored pixels `(height, width, 3)` as they are seen."""
        down, right = self._steps
        return (pixels.swapaxes(0, 1) if self._swaps_axes else pixels)[::down, ::right]

    def stored(self, pixels: np.ndarray) -> np.ndarray:
        """The inverse of [`~Orientation.upright`]."""
        down, right = self._steps
        pixels = pixels[::down, ::right]
        return pixels.swapaxes(0, 1) if self._swaps_axes else pixels


NOT_TURNED = Orientation((1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))


@dataclass
class Frame:
    """
    A frame of a video.

    Args:
        image (`PIL.Image.Image`): Its pixels in sRGB, upright.
        pts (`int`): When it is shown, in units of [`VideoReader`]'s `time_base`, after the first stream begins.
        duration (`int`): For how long, in the same units.
    """

    image: Image.Image
    pts: int
    duration: int


class VideoReader:
    """
    The first video stream of a file and its audio. A context manager, which closes the file.

    Args:
        path (`str` or `PathLike`): The file.

    Attributes:
        path (`Path`): The file.
        width (`int`), height (`int`): Size in pixels of the stored frames.
        orientation ([`Orientation`]): How they are turned.
        time_base (`Fraction`): The unit of their times, in seconds.
        rate (`Fraction`): Frames per second, on average.
        color_tags (`dict[str, int]`): How frames are written: as in the file for ordinary video, as BT.709 for HDR and
            wide gamuts.
        num_frames (`int`, *optional*): How many there should be, as far as the file tells.
        stream (`av.VideoStream`), audio_streams (`tuple[av.AudioStream]`): The streams, without audio of a kind that
            FFmpeg does not know.

    Raises:
        UserError: If PyAV is not installed, or not a single frame can be read.
    """

    def __init__(self, path: str | os.PathLike):
        if av is None:
            raise UserError('Videos need PyAV: install it, or catseg_hf with its extra, "catseg_hf[video]".')
        self.path = Path(path)
        self._open()
        with self.container:
            first = next(self._decode(lambda packet: None, None), None)
            starts = [(stream.start_time, stream.time_base) for stream in self.audio_streams]
        if first is None:
            raise UserError(f"No frame of the video {str(path)!r} could be read: it is damaged, or ends too early.")
        self.width, self.height = first.width, first.height
        matrix = first.side_data.get("DISPLAYMATRIX")
        self.orientation = Orientation(tuple(np.frombuffer(matrix, np.int32).tolist())) if matrix else NOT_TURNED
        # A header may say another start of the video than its first frame.
        starts.append((first.pts, self.time_base))
        self._start = min((start * unit for start, unit in starts if start is not None), default=Fraction(0))
        if not is_ordinary(first):
            self.color_tags = BT709_TAGS
        elif first.format.is_rgb:  # written in another colour space
            self.color_tags = {}
        else:
            self.color_tags = {name: getattr(first, name) for name in COLOR_TAGS}
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any):
        self.container.close()

    def read_frames(self, copy_audio: "Callable[[av.Packet], Any]") -> Iterator[Frame]:
        """
        Yields the frames that can be read, in their order, and hands every packet of audio that comes between them to
        `copy_audio`. To be called once.
        """
        usual_duration = max(1, round(1 / (self.rate * self.time_base)))
        end = pts = None
        for frame in self._decode(copy_audio, Clock(self._start, self._may_jump)):
            if frame.pts is None or (pts is not None and frame.pts <= pts):
                pts = end or 0  # the file gives no times, or they go back
            else:
                pts = frame.pts
            duration = frame.duration or usual_duration
            end = pts + duration
            if tags := unusual_color_tags(frame):
                codes = ", ".join(f"{name} {code}" for name, code in tags.items())
                logger.warning_once(
                    f"{str(self.path)!r} has colours that cannot be converted to sRGB ({codes} of ITU-T H.273): it is "
                    "segmented and written as if it were ordinary video. Convert it to BT.709 first."
                )
            pixels = srgb_pixels(frame, self.width, self.height)
            yield Frame(Image.fromarray(self.orientation.upright(pixels)), pts, duration)

    def is_whole(self) -> bool:
        """Whether everything was read that the file should have, once [`~VideoReader.read_frames`] is through."""
        size = stated_size(self.path, self.container.format.name)
        if size is None:
            # Formats, and programs, take the duration for that of the streams or for the time of their end.
            start = min(0, Fraction(self.container.start_time or 0, av.time_base))
            reaches_end = self._end >= start + self._duration - MAX_SHORTFALL
        else:
            reaches_end = self.path.stat().st_size >= size
        return reaches_end and not self._num_unreadable

    def open_container(self) -> "av.container.InputContainer":
        """
        The file, from its first packet.

        Raises:
            UserError: If it cannot be read.
        """
        try:
            # An absolute path is never taken for a protocol.
            return av.open(os.fspath(self.path.absolute()), metadata_errors="replace")
        except av.FFmpegError as error:
            raise UserError(f"The video {str(self.path)!r} could not be read: {error.strerror}.") from error

    def _open(self):
        """Begins at the first packet."""
        self.container = self.open_container()
        self.stream = self._find_video()
        all_audio = self.container.streams.audio
        self.audio_streams = tuple(stream for stream in all_audio if stream.codec_context is not None)
        if len(self.audio_streams) < len(all_audio):
            logger.warning_once(f"{str(self.path)!r} has audio that FFmpeg does not know, which is left out.")
        self.time_base = self.stream.time_base
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self._duration = Fraction(self.container.duration or 0, av.time_base)
        self.num_frames = self.stream.frames or round(self._duration * self.rate) or None
        self._may_jump = bool(self.container.format.flags & av.format.Flags.ts_discont.value)
        self._num_unreadable, self._end = 0, Fraction(0)

    def _find_video(self) -> "av.VideoStream":
        if not any(name in self.container.format.name for name in STILL_FORMATS):
            for stream in self.container.streams.video:
                is_cover = stream.disposition & av.stream.Disposition.attached_pic
                if not is_cover and stream.codec_context is not None:
                    return stream
        self.container.close()
        raise UserError(f"{str(self.path)!r} has no video that can be decoded: name a file with one.")

    def _decode(self, copy_audio: "Callable[[av.Packet], Any]", clock: Clock | None) -> "Iterator[av.VideoFrame]":
        """The frames that can be read, as they are stored."""
        for packet in self._read_packets(clock):
            if packet is not None and packet.stream in self.audio_streams:
                copy_audio(packet)
            else:
                try:
                    frames = self.stream.decode(packet)
                except av.FFmpegError:
                    self._num_unreadable += 1
                    continue
                self._num_unreadable += sum(frame.is_corrupt for frame in frames)
                yield from (frame for frame in frames if not frame.is_corrupt)

    def _read_packets(self, clock: Clock | None) -> "Iterator[av.Packet | None]":
        """The packets of video and audio that can be read, and `None` at the end."""
        try:
            for packet in self.container.demux():
                if packet.is_corrupt:
                    self._num_unreadable += 1
                elif packet.size:
                    if packet.pts is not None:
                        self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                    if packet.stream is self.stream or packet.stream in self.audio_streams:
                        if clock is not None:
                            clock.set_times(packet)
                        yield packet
        except av.FFmpegError:
            self._num_unreadable += 1
        yield None


class VideoWriter:
    """
    Writes frames and audio like those of another video. A context manager, which completes the file.

    Args:
        path (`Path`): The file that is written.
        output (`Path`): What it will be called: its suffix is the format, and errors name it.
        video ([`VideoReader`]): The video whose size, orientation, times, colours and audio streams it has.

    Raises:
        UserError: If the format cannot hold the audio. Nothing is written then.
    """

    def __init__(self, path: Path, output: Path, video: VideoReader):
        check_audio_output(video, output)
        self.output, self.video = output, video
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        time_base = video.time_base
        if encoder == "mpeg4":
            time_base = time_base.limit_denominator(MPEG4_LARGEST_DENOMINATOR)
        is_even = video.width % 2 == 0 and video.height % 2 == 0
        self.container = av.open(os.fspath(path.absolute()), "w", format=FORMATS[output.suffix.lower()])
        self.stream = self.container.add_stream(
            encoder,
            rate=video.rate,
            options=ENCODERS[encoder],
            width=video.width,
            height=video.height,
            pix_fmt="yuv420p" if is_even or encoder == "mpeg4" else "yuv444p",
            time_base=time_base,
            **video.color_tags,
        )
        self.stream.codec_context.sample_aspect_ratio = video.stream.sample_aspect_ratio or Fraction(1)
        self.stream.codec_context.flags |= av.codec.context.Flags.frame_duration
        self.stream.set_display_matrix(video.orientation.matrix)
        self.audio_streams = {stream: self._copy_stream(stream) for stream in video.audio_streams}
        self._run(self.container.start_encoding)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: Any):
        try:
            if kind is None:
                self._run(lambda: self.container.mux(self.stream.encode(None)))
                self._run(self.container.close)
        finally:
            self.container.close()

    def write(self, frame: Frame, image: Image.Image):
        """Writes an image of the frame's size in its place."""
        pixels = np.ascontiguousarray(self.video.orientation.stored(np.asarray(image)))
        encoded = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format=self.stream.pix_fmt,
            dst_colorspace=self.video.color_tags.get("colorspace"),
            dst_color_range=self.video.color_tags.get("color_range"),
        )
        encoded.pts, encoded.duration, encoded.time_base = frame.pts, frame.duration, self.video.time_base
        self._run(lambda: self.container.mux(self.stream.encode(encoded)))

    def copy_audio(self, packet: "av.Packet"):
        """Writes a packet that [`VideoReader.read_frames`] handed over."""
        packet.stream = self.audio_streams[packet.stream]
        self._run(lambda: self.container.mux(packet))

    def _copy_stream(self, stream: "av.AudioStream") -> "av.AudioStream":
        copy = self.container.add_stream_from_template(stream)
        copy.metadata.update(stream.metadata)
        copy.disposition = stream.disposition
        return copy

    def _run(self, action: Callable[[], Any]):
        try:
            action()
        except OSError:  # explained where the file is opened
            raise
        except av.FFmpegError as error:
            raise UserError(f"Could not write {self.output}: {error.strerror}.") from error


def check_video_output(path: str | os.PathLike):
    """
    Raises:
        UserError: If no new video can be written there.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"The output {str(path)!r} ends in {path.suffix!r}, but a name in {', '.join(FORMATS)} is needed."
        )
    if path.exists():
        raise UserError(f"The output {str(path)!r} exists already: name another file, or remove it.")
    if not path.parent.is_dir():
        raise UserError(f"The output's folder {str(path.parent)!r} does not exist: make it, or name another one.")
