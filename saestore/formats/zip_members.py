"""Members of zip files that are written as a stream: stored as they are, with their CRC-32, aligned where asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from zipfile import ZipFile, ZipInfo

from numpy.typing import NDArray

Part = bytes | NDArray[Any]

# A member that could pass 4 GiB needs the long form of its header, whose extra field has so many bytes.
_LONG_MEMBER = 1 << 31
_LONG_EXTRA = 20

# An extra field begins with an id, and the number of bytes that follow. Readers skip what they do not know; torch pads
# with the same id.
_PADDING_ID = b"FB"
_FIXED_HEADER = 30


def write_member(archive: ZipFile, name: str, parts: Iterable[Part], n_bytes: int, *, alignment: int = 1) -> None:
    """Write one member, part after part.

    Parameters
    ----------
    archive : ZipFile
        Open for writing, on a file that can seek.
    name : str
    parts : iterable of bytes or C-contiguous arrays
    n_bytes : int
        What the parts come to.
    alignment : int
        The content begins at a multiple of so many bytes, so that it can be mapped into memory.
    """
    member = ZipInfo(name)  # dated 1980, so that equal content gives equal bytes
    is_long = n_bytes >= _LONG_MEMBER
    if alignment > 1:
        assert archive.fp is not None
        start = archive.fp.tell() + _FIXED_HEADER + len(name.encode()) + (_LONG_EXTRA if is_long else 0) + 4
        padding = -start % alignment
        member.extra = _PADDING_ID + padding.to_bytes(2, "little") + b"\0" * padding
    with archive.open(member, "w", force_zip64=is_long) as stream:
        for part in parts:
            stream.write(memoryview(part).cast("B") if isinstance(part, bytes) else part.reshape(-1).view("u1").data)
