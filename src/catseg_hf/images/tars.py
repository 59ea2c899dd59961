"""WebDataset's tar files of images, with or without label maps."""

import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..errors import UserError, first_line


LABEL_SUFFIX = ".seg.png"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_GZIP = b"\x1f\x8b"
_GZIP_BITS = 16 + zlib.MAX_WBITS  # of zlib: a header and sums as of gzip
_CHUNK = 1 << 20


def is_tar(path: Path) -> bool:
    """Whether it is a tar file by its name, and no hidden one."""
    return path.name.lower().endswith(TAR_SUFFIXES) and not path.name.startswith(".") and path.is_file()


class _Header(tarfile.TarInfo):
    """Keeps in the archive what ended it, since `tarfile` takes a file that is cut off between two members for
    whole."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.ended_by = error
            raise


class _Unpacked:
    """A file from its beginning, or what it holds if it is gzip's, of which `tarfile` would not look at the sums and
    would read the first part alone. What is there before an early end is given, unlike by `gzip`."""

    def __init__(self, file: BinaryIO):
        self._file, self._left = file, file.read(len(_GZIP))
        self._is_packed, self._part = self._left == _GZIP, None

    def read(self, size: int) -> bytes:
        """The next bytes, about as many as asked for; none at the end."""
        while data := self._left or self._file.read(size):
            self._left = b""
            if not self._is_packed:
                return data
            if self._part is None:
                if not (data := data.lstrip(b"\0")):
                    continue
                self._part = zlib.decompressobj(_GZIP_BITS)
            unpacked = self._part.decompress(data)
            if self._part.eof:
                self._left, self._part = self._part.unused_data, None
            if unpacked:
                return unpacked
        if self._part is not None:
            raise EOFError("unexpected end of the compressed data")
        return b""


def read_members(file: BinaryIO, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """
    The members of a tar file, compressed or not, from first to last.

    Args:
        file (`BinaryIO`): It need not be seekable.
        is_wanted (`Callable`): Whether to read the member of a name; of those whose names begin with a dot none is.

    Yields:
        `tuple[str, bytes]`: The name of a member and what it holds.

    Raises:
        tarfile.ReadError: Behind the last whole member, if the file ends early or is damaged.
    """
    try:
        with tarfile.open(fileobj=_Unpacked(file), mode="r|*", tarinfo=_Header) as archive:
            for member in archive:
                if member.isfile() and not PurePosixPath(member.name).name.startswith(".") and is_wanted(member.name):
                    content = archive.extractfile(member).read()
                    if len(content) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield member.name, content
                # Or else every header that was read would be kept.
                archive.members = []
            if not isinstance(getattr(archive, "ended_by", None), tarfile.EOFHeaderError):
                raise tarfile.ReadError("it has no end mark")
            while archive.fileobj.read(_CHUNK):  # up to the sums
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise tarfile.ReadError(first_line(error)) from error


def damaged_tar(name: str, num_images: int, error: tarfile.ReadError) -> UserError:
    """What a user is told of a tar file of whose images so many were read before [`read_members`] raised an error."""
    return UserError(
        f"The tar file {name!r} ends early or is damaged, behind {num_images:,} image{'s' * (num_images != 1)}: "
        f"{error}. Copy it again, or take it out of the data."
    )


def read_tar(file: BinaryIO, name: str, suffixes: set[str]) -> Iterator[tuple[str, bytes]]:
    """
    The images of a WebDataset tar, compressed or not, from first to last.

    Args:
        file (`BinaryIO`): The tar file; it need not be seekable.
        name (`str`): What messages call it.
        suffixes (`set[str]`): Of images, in small letters and with their dots. "cat.seg.png" is a label map and none.

    Yields:
        `tuple[str, bytes]`: The name of a member and what it holds.

    Raises:
        UserError: Behind the last whole member, if the tar file ends early or is damaged.
    """

    def is_image(member: str) -> bool:
        member = member.lower()
        return PurePosixPath(member).suffix in suffixes and not member.endswith(LABEL_SUFFIX)

    number = 0
    try:
        for member, content in read_members(file, is_image):
            yield member, content
            number += 1
    except tarfile.ReadError as error:
        raise damaged_tar(name, number, error) from error
