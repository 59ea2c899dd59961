"""WebDataset's tar files of images, with or without label maps."""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from ..errors import UserError, first_line


LABEL_SUFFIX = ".seg.png"


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


def read_tar(file: BinaryIO, name: str, suffixes: set[str]) -> Iterator[tuple[str, bytes]]:
    """
    The images of a WebDataset tar, compressed or not, from first to last.

    Args:
        file (`BinaryIO`): The archive; it need not be seekable.
        name (`str`): What messages call it.
        suffixes (`set[str]`): Of images, in small letters and with their dots. "cat.seg.png" is a label map and none.

    Yields:
        `tuple[str, bytes]`: The name of a member and what it holds.

    Raises:
        UserError: Behind the last whole member, if the archive ends early or is damaged.
    """
    number = 0
    try:
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.name.startswith("."):
                    continue
                if path.suffix.lower() in suffixes and not path.name.lower().endswith(LABEL_SUFFIX):
                    content = archive.extractfile(member).read()
                    if len(content) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield member.name, content
                    number += 1
            if not isinstance(getattr(archive, "ended_by", None), tarfile.EOFHeaderError):
                raise tarfile.ReadError("it has no end mark")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"The archive {name!r} ends early or is damaged, behind {number} image{'s' * (number != 1)}: "
            f"{first_line(error)}. Copy it again."
        ) from error
