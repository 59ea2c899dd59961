"""The size that a video file should have by its own account: one that is smaller has been cut off."""

import os
from pathlib import Path
from typing import BinaryIO


MP4_MEDIA = (b"mdat", b"moof")
MATROSKA_HEADER, MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
UNKNOWN_RIFF_SIZE = (1 << 32) - 1
TS_SYNC, TS_PACKET = b"G", 188


def stated_size(path: Path, format_name: str) -> int | None:
    """
    Args:
        path (`Path`): The file.
        format_name (`str`): What FFmpeg calls its format.

    Returns:
        `int`, *optional*: the bytes up to the end of the last part that begins in the file, 0 if it does not say where
        that is; `None` for formats that have no such sizes.
    """
    if format_name not in MEASURES:
        return None
    with open(path, "rb") as file:
        return MEASURES[format_name](file, os.fstat(file.fileno()).st_size)


def _mp4_size(file: BinaryIO, file_size: int) -> int:
    stated = end = 0
    while end < file_size:
        file.seek(end)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        if size < 8:  # up to the end of the file, or no box
            break
        end += size
        if header[4:8] in MP4_MEDIA:  # what else follows may be anything
            stated = end
    return stated


def _avi_size(file: BinaryIO, file_size: int) -> int:
    end = 0
    while end < file_size:  # large files are several in a row
        file.seek(end)
        header = file.read(8)
        size = int.from_bytes(header[4:], "little")
        if not header.startswith(b"RIFF") or size == UNKNOWN_RIFF_SIZE:
            break
        end += 8 + size
    return end


def _matroska_size(file: BinaryIO, file_size: int) -> int:
    end = 0
    for element in (MATROSKA_HEADER, MATROSKA_SEGMENT):
        file.seek(end)
        start = file.read(len(element) + 1)
        if not start.startswith(element) or start == element:
            break
        # The zeros before the first one say how many bytes follow for the size.
        num_bytes = 9 - start[-1].bit_length()
        limit = 1 << 7 * num_bytes
        size = int.from_bytes(start[-1:] + file.read(num_bytes - 1), "big") - limit
        if size == limit - 1:  # unknown
            break
        end = file.tell() + size
    return end


def _transport_stream_size(file: BinaryIO, file_size: int) -> int:
    head = file.read(2048)
    for stride in (TS_PACKET, TS_PACKET + 4, TS_PACKET + 16):  # with the clock of an M2TS before, with parity after
        for start in range(stride):
            if head[start::stride][:5] == 5 * TS_SYNC:
                rest = (file_size - start) % stride
                file.seek(file_size - rest)
                is_cut = rest < TS_PACKET and file.read(1) == TS_SYNC
                return file_size + is_cut * (TS_PACKET - rest)
    return 0


MEASURES = {
    "mov,mp4,m4a,3gp,3g2,mj2": _mp4_size,
    "matroska,webm": _matroska_size,
    "avi": _avi_size,
    "mpegts": _transport_stream_size,
}
