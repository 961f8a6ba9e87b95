import pytest

from services.contracts.errors import Refused
from services.jobs.ids import is_batch_id, is_job_id, job_of_blob, new_batch_id, new_blob_key, new_job_id


def test_job_ids_have_their_form_and_do_not_repeat() -> None:
    ids = {new_job_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(is_job_id(job_id) for job_id in ids)


@pytest.mark.parametrize(
    "text", ["", "job_", "job_" + "a" * 25, "job_" + "A" * 26, "job_" + "1" * 26, "xob_" + "a" * 26]
)
def test_other_text_is_no_job_id(text: str) -> None:
    assert not is_job_id(text)
    assert not is_job_id(new_job_id() + "\n")


def test_batches_and_jobs_are_not_taken_for_each_other() -> None:
    assert is_batch_id(new_batch_id())
    assert not is_job_id(new_batch_id())
    assert not is_batch_id(new_job_id())
    assert not is_batch_id(new_batch_id() + "\n")


def test_a_blob_key_names_its_job() -> None:
    job_id = new_job_id()
    assert job_of_blob(new_blob_key(job_id, 3)) == job_id
    with pytest.raises(Refused):
        job_of_blob(new_blob_key(job_id, 3) + "/..")
