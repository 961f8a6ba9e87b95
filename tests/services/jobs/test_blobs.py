"""What every store of blobs promises: in memory, in a folder, in Redis."""

import os
from pathlib import Path

import pytest
from redis import Redis

from services.adapters.folder_blobs import FolderBlobs
from services.adapters.redis_blobs import CHUNK_BYTES, RedisBlobs
from services.adapters.redis_client import make_client
from services.contracts.errors import ErrorCode, Refused, Unavailable
from services.jobs.ids import new_batch_id, new_blob_key, new_job_id
from services.jobs.memory import MemoryBlobs
from services.jobs.ports import Blobs

JOB = "job_" + "a" * 26


@pytest.fixture(params=["memory", "folder", "redis"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "memory":
        return MemoryBlobs()
    if request.param == "folder":
        return FolderBlobs(tmp_path / "blobs")
    return RedisBlobs(make_client(request.getfixturevalue("redis_url"), patient=False))


def test_bytes_come_back_as_they_were(blobs: Blobs) -> None:
    data = os.urandom(2 * CHUNK_BYTES + 17)
    key = new_blob_key(new_job_id(), 1)
    blobs.put(key, data)
    assert blobs.get(key) == data


def test_an_empty_blob_is_not_a_missing_one(blobs: Blobs) -> None:
    key = new_blob_key(new_job_id(), 1)
    blobs.put(key, b"")
    assert blobs.get(key) == b""
    assert blobs.read(key, 0, 10) == b""


def test_any_slice_can_be_read(blobs: Blobs) -> None:
    data = os.urandom(2 * CHUNK_BYTES + 17)
    key = new_blob_key(new_job_id(), 1)
    blobs.put(key, data)
    size = len(data)
    for offset, nbytes in (
        (0, 1),
        (0, size),
        (CHUNK_BYTES - 3, 6),
        (CHUNK_BYTES, CHUNK_BYTES),
        (size - 5, 50),
        (size + 9, 4),
        (7, 0),
    ):
        assert blobs.read(key, offset, nbytes) == data[offset : offset + nbytes]


def test_a_blob_that_is_not_there_is_none(blobs: Blobs) -> None:
    key = new_blob_key(new_job_id(), 1)
    assert blobs.get(key) is None
    assert blobs.read(key, 0, 1) is None


def test_writing_a_blob_again_replaces_it(blobs: Blobs) -> None:
    key = new_blob_key(new_job_id(), 1)
    blobs.put(key, b"first")
    blobs.put(key, b"again")
    assert blobs.get(key) == b"again"


def test_a_batch_owns_blobs_as_a_job_does(blobs: Blobs) -> None:
    batch, job = new_batch_id(), new_job_id()
    for owner in (batch, job):
        blobs.put(new_blob_key(owner, 0), b"x")
    assert sorted(blobs.jobs()) == sorted([batch, job])
    blobs.delete(batch)
    assert list(blobs.jobs()) == [job]


def test_deleting_a_jobs_blobs_leaves_those_of_others(blobs: Blobs) -> None:
    ada, bob = new_job_id(), new_job_id()
    gone = [new_blob_key(ada, 1), new_blob_key(ada, 2)]
    kept = new_blob_key(bob, 1)
    for key in (*gone, kept):
        blobs.put(key, b"x")
    assert sorted(blobs.jobs()) == sorted([ada, bob])
    blobs.delete(ada)
    blobs.delete(ada)
    assert [blobs.get(key) for key in gone] == [None, None]
    assert blobs.get(kept) == b"x"
    assert blobs.jobs() == [bob]


def test_there_are_no_jobs_before_the_first_blob(blobs: Blobs) -> None:
    assert list(blobs.jobs()) == []


@pytest.mark.parametrize("key", ["", "../../etc/passwd", f"{JOB}/../x", f"/{JOB}/1/x", "job_a/1/b"])
def test_a_key_that_we_did_not_make_is_refused(blobs: Blobs, key: str) -> None:
    with pytest.raises(Refused):
        blobs.put(key, b"x")
    with pytest.raises(Refused):
        blobs.get(key)
    with pytest.raises(Refused):
        blobs.read(key, 0, 1)


def test_deleting_what_is_no_job_deletes_nothing(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "precious").mkdir()
    FolderBlobs(tmp_path / "blobs").delete("../precious")
    assert (tmp_path / "precious").is_dir()


def test_a_folder_leaves_nothing_unfinished_behind(tmp_path: Path) -> None:
    key = new_blob_key(new_job_id(), 1)
    FolderBlobs(tmp_path).put(key, b"x")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / key]


def test_a_folder_that_cannot_be_written_is_unavailable_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match="Not a directory") as refusal:
        FolderBlobs(tmp_path / "blobs").put(new_blob_key(new_job_id(), 1), b"x")
    assert refusal.value.code is ErrorCode.STORE_UNAVAILABLE


def test_blobs_in_redis_are_bounded_and_deleting_makes_room(redis_url: str) -> None:
    blobs = RedisBlobs(make_client(redis_url, patient=False), max_bytes=1_000)
    job = new_job_id()
    blobs.put(new_blob_key(job, 1), bytes(600))
    with pytest.raises(Unavailable, match="full"):
        blobs.put(new_blob_key(new_job_id(), 1), bytes(600))
    blobs.delete(job)
    blobs.put(new_blob_key(new_job_id(), 1), bytes(600))


def test_a_blob_in_redis_that_was_not_written_to_its_end_does_not_exist(redis_url: str) -> None:
    client = make_client(redis_url, patient=False)
    blobs = RedisBlobs(client)
    key = new_blob_key(new_job_id(), 1)
    blobs.put(key, bytes(CHUNK_BYTES + 1))
    client.hdel(f"lensd:blob:{key}", "nbytes")
    assert blobs.get(key) is None


def test_deleted_blobs_leave_nothing_in_redis(redis_url: str) -> None:
    blobs = RedisBlobs(make_client(redis_url, patient=False))
    job = new_job_id()
    blobs.put(new_blob_key(job, 1), bytes(3 * CHUNK_BYTES))
    blobs.delete(job)
    with Redis.from_url(redis_url) as client:
        assert client.keys() == [b"lensd:blob-bytes"]
        assert client.get("lensd:blob-bytes") == b"0"
