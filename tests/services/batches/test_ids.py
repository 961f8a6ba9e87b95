"""The ids of a batch's jobs."""

from services.batches.ids import job_id_of
from services.jobs.ids import is_job_id, new_batch_id


def test_the_id_of_a_lines_job_follows_from_batch_and_line_alone() -> None:
    first, second = new_batch_id(), new_batch_id()
    ids = [job_id_of(batch, index) for batch in (first, second) for index in range(10_000)]
    assert len(set(ids)) == 20_000
    assert all(map(is_job_id, ids))
    assert job_id_of(first, 7) == ids[7]
