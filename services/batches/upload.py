"""Lines of an upload, read from the store of blobs a piece at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.jobs.ports import Blobs

PIECE_BYTES = 256 * 1024


class UploadLostError(Exception):
    """The upload is no longer in the store of blobs."""


@dataclass(frozen=True)
class RawLine:
    """A line without its end; `number` counts from 1, blank lines too."""

    number: int
    offset: int
    text: bytes


def count_lines(upload: bytes) -> int:
    """Lines that are not blank."""
    return sum(bool(line.strip()) for line in upload.split(b"\n"))


def lines_from(blobs: Blobs, key: str, offset: int, number: int) -> Iterator[RawLine]:
    """The lines that are not blank from `offset` on, before which there are `number` lines. Raises UploadLostError."""
    piece, wanted = b"", PIECE_BYTES
    while True:
        more = read_slice(blobs, key, offset + len(piece), wanted)
        piece += more
        *whole, rest = piece.split(b"\n")
        if not more and rest:
            # The last line need not end.
            whole, rest = [rest], b""
        for text in whole:
            number += 1
            if text.strip():
                yield RawLine(number, offset, text)
            offset += len(text) + 1
        if not more:
            return
        # A line longer than what was read so far is read in ever larger steps.
        wanted = PIECE_BYTES if whole else 2 * wanted
        piece = rest


def read_slice(blobs: Blobs, key: str, offset: int, nbytes: int) -> bytes:
    """Bytes of the upload. Raises UploadLostError."""
    data = blobs.read(key, offset, nbytes)
    if data is None:
        raise UploadLostError
    return data
