"""Reads and writes videos through PyAV: one frame at a time, and audio as it is."""

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


try:
    import av
except ImportError:  # the extra "video"
    av = None


logger = logging.get_logger(__name__)

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
# In the order of preference; the options ask for no visible loss.
ENCODERS = {"libx264": {"crf": "18"}, "mpeg4": {"flags": "+qscale", "global_quality": "236"}}
MPEG4_LARGEST_DENOMINATOR = 65535  # of a time base
COLOR_TAGS = ("colorspace", "color_range", "color_primaries", "color_trc")
STILL_FORMATS = ("image2", "_pipe", "tty")  # images and text, which FFmpeg plays as well

# Seconds by which a whole file may end before the duration that it states.
MAX_SHORTFALL = 0.5
MATROSKA_HEADER, MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


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
        image (`PIL.Image.Image`): Its pixels in RGB, upright.
        pts (`int`): When it is shown, in units of [`VideoReader`]'s `time_base`.
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
            first = next(self._decode(lambda packet: None), None)
        if first is None:
            raise UserError(f"No frame of the video {str(path)!r} could be read: it is damaged, or ends too early.")
        self.width, self.height = first.width, first.height
        matrix = first.side_data.get("DISPLAYMATRIX")
        self.orientation = Orientation(tuple(np.frombuffer(matrix, np.int32).tolist())) if matrix else NOT_TURNED
        # Frames in RGB are written in another colour space.
        self.color_tags = {} if first.format.is_rgb else {name: getattr(first, name) for name in COLOR_TAGS}
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
        for frame in self._decode(copy_audio):
            if frame.pts is None or (pts is not None and frame.pts <= pts):
                pts = end or 0  # the file gives no times, or they go back
            else:
                pts = frame.pts
            duration = frame.duration or usual_duration
            end = pts + duration
            pixels = frame.to_ndarray(format="rgb24", width=self.width, height=self.height)
            yield Frame(Image.fromarray(self.orientation.upright(pixels)), pts, duration)

    def is_whole(self) -> bool:
        """Whether everything was read that the file should have, once [`~VideoReader.read_frames`] is through."""
        start = Fraction(self.container.start_time or 0, av.time_base)
        return (
            not self._num_unreadable
            and self._num_packets >= self.stream.frames
            and self._end >= start + self._duration - MAX_SHORTFALL
            and self.path.stat().st_size >= matroska_size(self.path)
        )

    def _open(self):
        """Begins at the first packet."""
        try:
            # An absolute path is never taken for a protocol.
            self.container = av.open(os.fspath(self.path.absolute()), metadata_errors="replace")
        except av.FFmpegError as error:
            raise UserError(f"The video {str(self.path)!r} could not be read: {error.strerror}.") from error
        self.stream = self._find_video()
        all_audio = self.container.streams.audio
        self.audio_streams = tuple(stream for stream in all_audio if stream.codec_context is not None)
        if len(self.audio_streams) < len(all_audio):
            logger.warning_once(f"{str(self.path)!r} has audio that FFmpeg does not know, which is left out.")
        self.time_base = self.stream.time_base
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self._duration = Fraction(self.container.duration or 0, av.time_base)
        self.num_frames = self.stream.frames or round(self._duration * self.rate) or None
        self._num_packets, self._num_unreadable, self._end = 0, 0, Fraction(0)

    def _find_video(self) -> "av.VideoStream":
        if not any(name in self.container.format.name for name in STILL_FORMATS):
            for stream in self.container.streams.video:
                is_cover = stream.disposition & av.stream.Disposition.attached_pic
                if not is_cover and stream.codec_context is not None:
                    return stream
        self.container.close()
        raise UserError(f"{str(self.path)!r} has no video that can be decoded: name a file with one.")

    def _decode(self, copy_audio: "Callable[[av.Packet], Any]") -> "Iterator[av.VideoFrame]":
        """The frames that can be read, as they are stored."""
        for packet in self._read_packets():
            if packet is not None and packet.stream in self.audio_streams:
                copy_audio(packet)
            elif packet is None or packet.stream is self.stream:
                try:
                    frames = self.stream.decode(packet)
                except av.FFmpegError:
                    self._num_unreadable += 1
                    continue
                self._num_unreadable += sum(frame.is_corrupt for frame in frames)
                yield from (frame for frame in frames if not frame.is_corrupt)

    def _read_packets(self) -> "Iterator[av.Packet | None]":
        """The packets of all streams that can be read, and `None` at the end."""
        try:
            for packet in self.container.demux():
                if packet.is_corrupt:
                    self._num_unreadable += 1
                elif packet.size:
                    self._num_packets += packet.stream is self.stream
                    if packet.pts is not None:
                        self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base)
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
        UserError: If the format cannot hold the audio.
    """

    def __init__(self, path: Path, output: Path, video: VideoReader):
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
        try:
            copy = self.container.add_stream_from_template(stream)
        except ValueError as error:
            raise UserError(
                f"{str(self.output)!r} cannot hold the audio of {str(self.video.path)!r} ({stream.name}): name an "
                "output with another suffix, or convert the audio first."
            ) from error
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


def matroska_size(path: Path) -> int:
    """The bytes that a Matroska file says it has; 0 if it does not, and for files of another kind."""
    end = 0
    with open(path, "rb") as file:
        for element in (MATROSKA_HEADER, MATROSKA_SEGMENT):
            file.seek(end)
            start = file.read(len(element) + 1)
            if not start.startswith(element) or start == element:
                return 0
            # The zeros before the first one say how many bytes follow for the size.
            num_bytes = 9 - start[-1].bit_length()
            limit = 1 << 7 * num_bytes
            size = int.from_bytes(start[-1:] + file.read(num_bytes - 1), "big") - limit
            if size == limit - 1:  # unknown
                return 0
            end = file.tell() + size
    return end
