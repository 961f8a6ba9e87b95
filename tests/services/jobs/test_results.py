"""A result on its way into the store and back out."""

import hashlib
from datetime import UTC, datetime

import numpy as np
import orjson
import pytest
from pydantic import TypeAdapter

from services.contracts.errors import Conflict, ErrorCode, NotFound
from services.contracts.job import JobResult, JobStatus
from services.contracts.patching import PatchingResult
from services.contracts.tensor import FloatArray, InlineTensor
from services.jobs.memory import MemoryBlobs
from services.jobs.record import JobRecord, StoredResult
from services.jobs.results import copy_result, load_document, load_result, load_tensor, load_tensors, store_result
from tests.services.jobs.samples import new_job, patching_result, statistic

SMALL = np.array([[1.5, np.nan], [-0.1, np.inf]], dtype=np.float32)
LARGE = np.random.default_rng(0).normal(size=(30, 1_000)).astype(np.float32)
RESULT: TypeAdapter[JobResult] = TypeAdapter(JobResult)


def kept(blobs: MemoryBlobs, result: JobResult, *, roomy: bool = False) -> JobRecord:
    """The record of a job that has ended with `result`."""
    job = new_job()
    stored = store_result(blobs, job.id, 1, result, roomy=roomy)
    return job.queued(datetime.now(UTC)).model_copy(update={"status": JobStatus.SUCCEEDED, "result": stored})


def test_a_small_result_stays_in_the_record() -> None:
    blobs = MemoryBlobs()
    record = kept(blobs, patching_result(SMALL, SMALL))
    assert not blobs.by_key
    document = orjson.loads(load_document(record, blobs))
    assert document["effects"]["values"] == [1.5, None, -0.1, None]
    assert document["pairs"] == []
    with pytest.raises(NotFound) as refusal:
        load_tensor(record, blobs, "effects")
    assert refusal.value.code is ErrorCode.TENSOR_NOT_FOUND


@pytest.mark.parametrize("effects", [SMALL, LARGE])
def test_a_result_comes_back_with_its_tensors_inline(effects: FloatArray) -> None:
    blobs = MemoryBlobs()
    result = load_result(kept(blobs, patching_result(effects, SMALL)), blobs)
    assert isinstance(result, PatchingResult)
    assert isinstance(result.effects, InlineTensor)
    finite = np.where(np.isfinite(effects), effects, np.nan)
    assert np.array_equal(result.effects.array(), finite, equal_nan=True)
    assert result.effects.dims == ("layer", "position")


def test_a_result_over_four_kilobytes_is_a_blob() -> None:
    blobs = MemoryBlobs()
    middle = LARGE[:, :100]
    record = kept(blobs, patching_result(middle, middle))
    assert record.result is not None
    assert record.result.document is None
    assert list(blobs.by_key) == [record.result.document_blob]
    assert np.array_equal(load_tensors(record, blobs)["effects"], middle)


def test_a_large_tensor_is_external_and_says_where_its_bytes_are() -> None:
    blobs = MemoryBlobs()
    record = kept(blobs, patching_result(LARGE, SMALL))
    document = orjson.loads(load_document(record, blobs))
    assert document["normalized"]["encoding"] == "inline"
    assert document["effects"] == {
        "encoding": "external",
        "dims": ["layer", "position"],
        "shape": [30, 1_000],
        "dtype": "float32",
        "href": f"/v1/jobs/{record.id}/tensors/effects",
        "nbytes": 120_000,
        "sha256": hashlib.sha256(LARGE.tobytes()).hexdigest(),
    }
    assert load_tensor(record, blobs, "effects") == LARGE.tobytes()


def test_a_document_with_external_tensors_is_a_valid_result() -> None:
    blobs = MemoryBlobs()
    RESULT.validate_json(load_document(kept(blobs, patching_result(LARGE, LARGE[::2], [statistic(LARGE)])), blobs))


def test_tensors_that_are_small_alone_become_external_once_a_megabyte_is_inline() -> None:
    blobs = MemoryBlobs()
    each = LARGE[:, :500]
    record = kept(blobs, patching_result(SMALL, SMALL, [statistic(each + i) for i in range(12)]))
    document = orjson.loads(load_document(record, blobs))
    encodings = [pair["effects"][part]["encoding"] for pair in document["pairs"] for part in ("mean", "standard_error")]
    inline = 1024 * 1024 // each.nbytes
    assert encodings == ["inline"] * inline + ["external"] * (24 - inline)
    assert load_tensor(record, blobs, "pairs.11.effects.mean") == (each + 11).tobytes()


def test_every_tensor_comes_back_by_name_in_its_shape() -> None:
    blobs = MemoryBlobs()
    tensors = load_tensors(kept(blobs, patching_result(LARGE, SMALL, [statistic(LARGE[::2])])), blobs)
    assert set(tensors) == {"effects", "normalized", "pairs.0.effects.mean", "pairs.0.effects.standard_error"}
    assert np.array_equal(tensors["effects"], LARGE)
    assert np.array_equal(tensors["pairs.0.effects.mean"], LARGE[::2])
    assert np.array_equal(np.isnan(tensors["normalized"]), [[False, True], [False, True]])


def test_every_float32_survives_json_exactly() -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, size=(15, 1_000), dtype=np.uint32)
    values = bits.view(np.float32)
    values[~np.isfinite(values)] = np.float32(1e-45)
    blobs = MemoryBlobs()
    document = load_document(kept(blobs, patching_result(values, SMALL)), blobs)
    assert orjson.loads(document)["effects"]["encoding"] == "inline"
    back = load_tensors(kept(blobs, patching_result(values, SMALL)), blobs)["effects"]
    assert np.array_equal(back.view(np.uint32), values.view(np.uint32))


def test_a_lost_blob_is_said_to_be_lost() -> None:
    blobs = MemoryBlobs()
    record = kept(blobs, patching_result(LARGE, LARGE))
    blobs.delete(record.id)
    for load in (
        lambda: load_document(kept(MemoryBlobs(), patching_result(LARGE[:, :100], LARGE)), blobs),
        lambda: load_tensors(record, blobs),
        lambda: load_tensor(record, blobs, "effects"),
    ):
        with pytest.raises(NotFound) as refusal:
            load()
        assert refusal.value.code is ErrorCode.RESULT_LOST


def test_a_damaged_blob_counts_as_lost() -> None:
    blobs = MemoryBlobs()
    record = kept(blobs, patching_result(LARGE, SMALL))
    assert record.result is not None
    blobs.by_key[str(record.result.tensors_blob)] = b"\x08\0\0\0\0\0\0\0{}"
    for load in (lambda: load_tensors(record, blobs), lambda: load_tensor(record, blobs, "effects")):
        with pytest.raises(NotFound) as refusal:
            load()
        assert refusal.value.code is ErrorCode.RESULT_LOST


def test_a_job_without_a_result_has_none_to_load() -> None:
    record = new_job().queued(datetime.now(UTC))
    with pytest.raises(Conflict) as refusal:
        load_document(record, MemoryBlobs())
    assert refusal.value.code is ErrorCode.JOB_WITHOUT_RESULT


def test_an_unknown_tensor_is_not_found() -> None:
    blobs = MemoryBlobs()
    record = kept(blobs, patching_result(LARGE, SMALL))
    for name in ("normalized", "__metadata__", "", "effects.values"):
        with pytest.raises(NotFound) as refusal:
            load_tensor(record, blobs, name)
        assert refusal.value.code is ErrorCode.TENSOR_NOT_FOUND


def test_a_middling_result_stays_in_the_record_while_the_store_has_room() -> None:
    middling, large = (np.ones((rows, 1_000), dtype=np.float32) for rows in (2, 12))
    blobs = MemoryBlobs()
    record = kept(blobs, patching_result(middling, SMALL), roomy=True)
    assert not blobs.by_key
    assert load_document(record, blobs) == load_document(kept(blobs, patching_result(middling, SMALL)), blobs)
    assert len(blobs.by_key) == 1
    kept(blobs, patching_result(large, large), roomy=True)
    assert len(blobs.by_key) == 2


def test_a_stored_result_survives_its_own_json() -> None:
    stored = store_result(MemoryBlobs(), new_job().id, 1, patching_result(SMALL, SMALL))
    assert StoredResult.model_validate_json(stored.model_dump_json()) == stored


@pytest.mark.parametrize("roomy", [True, False])
@pytest.mark.parametrize("effects", [SMALL, LARGE[:, :100], LARGE])
def test_a_copy_of_a_result_is_whole_and_stands_alone(effects: FloatArray, roomy: bool) -> None:
    blobs = MemoryBlobs()
    source = kept(blobs, patching_result(effects, SMALL), roomy=roomy)
    job = new_job()
    record = source.model_copy(update={"id": job.id, "result": copy_result(blobs, source, job.id)})
    before, tensors = load_document(source, blobs), load_tensors(source, blobs)
    blobs.delete(source.id)
    assert source.id.encode() not in load_document(record, blobs)
    assert load_document(record, blobs).replace(job.id.encode(), source.id.encode()) == before
    for name, array in load_tensors(record, blobs).items():
        assert np.array_equal(array, tensors[name], equal_nan=True)
    assert set(blobs.jobs()) <= {job.id}


def test_a_result_that_is_lost_is_not_copied() -> None:
    blobs = MemoryBlobs()
    source = kept(blobs, patching_result(LARGE, SMALL))
    blobs.delete(source.id)
    with pytest.raises(NotFound) as refusal:
        copy_result(blobs, source, new_job().id)
    assert refusal.value.code is ErrorCode.RESULT_LOST
