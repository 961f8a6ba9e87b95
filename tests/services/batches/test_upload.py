"""Lines of an upload, read in pieces."""

import pytest

from services.batches import upload
from services.batches.upload import UploadLostError, count_lines, lines_from, read_slice
from services.jobs.ids import new_batch_id, new_blob_key
from services.jobs.memory import MemoryBlobs

KEY = new_blob_key(new_batch_id(), 0)


def stored(text: bytes) -> MemoryBlobs:
    blobs = MemoryBlobs()
    blobs.put(KEY, text)
    return blobs


@pytest.mark.parametrize(
    "text",
    [
        b"a\nbb\nccc",
        b"a\nbb\nccc\n",
        b"\n\n a\r\n  \n\nb\n\n",
        b"x",
        b"\n",
        b"long " * 200_000 + b"\nshort\n" + b"longer " * 200_000,
        b"\n".join(b"%d" % number for number in range(100_000)),
    ],
)
def test_every_line_that_is_not_blank_comes_once_where_it_stands(text: bytes) -> None:
    expected = [(number, line) for number, line in enumerate(text.split(b"\n"), start=1) if line.strip()]
    lines = list(lines_from(stored(text), KEY, 0, 0))
    assert [(line.number, line.text) for line in lines] == expected
    assert all(text[line.offset : line.offset + len(line.text)] == line.text for line in lines)
    assert count_lines(text) == len(lines)


def test_reading_goes_on_after_any_line() -> None:
    blobs = stored(b"a\n\nbb\nccc\n" * 30_000)
    whole = list(lines_from(blobs, KEY, 0, 0))
    for index in (0, 1, 44_999, 89_998):
        line = whole[index]
        rest = lines_from(blobs, KEY, line.offset + len(line.text) + 1, line.number)
        assert next(rest) == whole[index + 1]


def test_no_more_is_read_than_is_asked_for() -> None:
    class Counting(MemoryBlobs):
        read_bytes = 0

        def read(self, key: str, offset: int, nbytes: int) -> bytes | None:
            self.read_bytes += nbytes
            return super().read(key, offset, nbytes)

    blobs = Counting()
    blobs.put(KEY, b"some line\n" * 1_000_000)
    next(lines_from(blobs, KEY, 0, 0))
    assert blobs.read_bytes == upload.PIECE_BYTES


def test_an_upload_that_is_gone_is_told() -> None:
    with pytest.raises(UploadLostError):
        next(lines_from(MemoryBlobs(), KEY, 0, 0))
    with pytest.raises(UploadLostError):
        read_slice(MemoryBlobs(), KEY, 0, 1)
