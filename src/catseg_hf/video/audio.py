"""Which audio the formats of written videos take: FFmpeg is asked before anything is written."""

import io
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError


try:
    import av
except ImportError:  # the extra "video"
    av = None

if TYPE_CHECKING:
    from .files import VideoReader


FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
NUM_SEARCHED_PACKETS = 1000


def check_audio_output(video: "VideoReader", output: str | os.PathLike):
    """
    Args:
        video ([`VideoReader`]): A video.
        output (`str` or `PathLike`): Where it is to be written, with one of the suffixes `FORMATS`.

    Raises:
        UserError: If a file of that suffix cannot hold the video's audio as it is.
    """
    with video.open_container() as container:
        indices = {stream.index for stream in video.audio_streams}
        packets = {stream: None for stream in container.streams.audio if stream.index in indices}
        for packet in itertools.islice(container.demux(), NUM_SEARCHED_PACKETS):
            if packets.get(packet.stream, packet) is None and packet.size:
                packets[packet.stream] = packet
            if None not in packets.values():
                break
        suffix = Path(output).suffix.lower()
        refused = {stream.name: None for stream, packet in packets.items() if not _takes(suffix, {stream: packet})}
        suffixes = [other for other in FORMATS if other != suffix and _takes(other, packets)] if refused else []
    if refused:
        advice = f"name an output that ends in {' or '.join(suffixes)}, or convert" if suffixes else "convert"
        names = ", ".join(refused)
        raise UserError(
            f"{str(output)!r} cannot hold the audio of {str(video.path)!r} ({names}): {advice} the audio first."
        )


def _takes(suffix: str, packets: "Mapping[av.AudioStream, av.Packet | None]") -> bool:
    """Whether a file with these streams, and the first packet of each, can be begun and ended: some codecs are refused
    by the head of a file only, some by its end."""
    container = av.open(io.BytesIO(), "w", format=FORMATS[suffix])
    try:
        copies = {stream: container.add_stream_from_template(stream) for stream in packets}
        container.start_encoding()
        for stream, packet in packets.items():
            if packet is not None:
                packet.stream = copies[stream]
                container.mux(packet)
        container.close()
    except (ValueError, av.FFmpegError):
        return False
    return True
