"""Parts of a change are run in groups, whatever the groups are."""

import json
from functools import partial

import numpy as np
import pytest

from services.contracts.metric import LogitDiff
from services.engine.engine import Engine
from services.methods.feature_estimates import look
from services.methods.feature_parts import Part, exact_effects
from services.methods.feature_site import Subject, change_of
from services.methods.metric import measure
from tests.services.methods.attribution_patching import PAIR
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.feature_reference import FEATURES, made, served
from tests.services.methods.test_feature_patching import OTHER_PAIR, body


@pytest.mark.parametrize("by_position", [False, True])
def test_effects_do_not_depend_on_how_many_rows_run_together(
    laboratory: Laboratory, engine: Engine, *, by_position: bool
) -> None:
    used = made()
    spec = SPEC.validate_json(json.dumps(body((PAIR, OTHER_PAIR))))
    context = Laboratory(engine, served(laboratory, used.facts)).context(spec, used)
    subjects = [
        Subject.of(pair, measure(LogitDiff(), pair, context.inputs), "denoising", None) for pair in context.inputs.pairs
    ]
    seen = look(subjects, partial(change_of, in_use=used), used, context, gradients=False)
    changes = [(one.subject, one.change) for one in seen]
    parts: tuple[Part, ...] = ("both", "error", *range(FEATURES))
    together, in_threes = (
        exact_effects(changes, parts, used, context, by_position=by_position, rows_at_once=at_once)
        for at_once in (8_192, 3)
    )
    assert np.count_nonzero(together) > 10
    np.testing.assert_allclose(in_threes, together, atol=1e-5)
