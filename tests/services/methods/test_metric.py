"""A result states finite numbers, or the job says why it cannot."""

import math

import pytest

from services.contracts.errors import ErrorCode, JobFailed
from services.methods.direct_logit_terms import uncapped
from services.methods.metric import finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_fails_the_job_with_a_sentence(value: float) -> None:
    with pytest.raises(JobFailed, match=r"the metric is .*: this model overflows on this prompt") as failed:
        finite(value, "the metric")
    assert failed.value.code is ErrorCode.METHOD_FAILED
    assert finite(-4.5, "the metric") == -4.5


def test_a_saturated_soft_cap_cannot_be_undone() -> None:
    assert uncapped(30 * math.tanh(12.5 / 30), 30.0) == pytest.approx(12.5)
    assert uncapped(12.5, None) == 12.5
    assert uncapped(30.0, 30.0) == math.inf
    assert uncapped(-30.0, 30.0) == -math.inf
