"""Continuations that a model cannot run are refused before they are queued."""

import pytest
import torch

from services.contracts.site import SiteName
from services.engine.check import InvalidRow
from services.engine.decoding import Continuation, Onward, Sampled
from services.engine.engine import Engine
from services.engine.row import FromRun, Intervention, Site
from services.engine.ticket import JobTicket
from tests.families import CONTEXT, D_MODEL
from tests.services.engine.conftest import LoadTiny

PROMPT = (17, 41, 5, 230, 99, 8, 77)
SOURCE = (18, 40, 5, 61, 98, 9, 78)
VECTOR = torch.zeros(D_MODEL)


@pytest.mark.parametrize(
    ("continuation", "message"),
    [
        (Continuation((), 3), "reads 1 to"),
        (Continuation((5,) * (CONTEXT + 1), 3), "reads 1 to"),
        (Continuation(PROMPT, 0), "max_new_tokens of 0"),
        (Continuation(PROMPT, 3, stop=frozenset({320})), "stop tokens"),
        (Continuation(PROMPT, 3, sampling=Sampled(0, temperature=0.0)), "temperature"),
        (Continuation(PROMPT, 3, sampling=Sampled(0, top_k=0)), "top_k"),
        (Continuation(PROMPT, 3, sampling=Sampled(0, top_p=1.5)), "top_p"),
        (Continuation(PROMPT, 3, (Onward(Site(SiteName.RESID_POST, 1), 9, "add", VECTOR),)), r"runs 0\.\.8"),
        (Continuation(PROMPT, 3, (Onward(Site(SiteName.RESID_PRE, 7), 0, "add", 1.0),)), "layer 7"),
        (Continuation(PROMPT, 3, (Onward(Site(SiteName.RESID_PRE, 1), 0, "add", VECTOR[1:]),)), r"expected \(32,\)"),
        (
            Continuation(PROMPT, 3, (Intervention(Site(SiteName.RESID_PRE, 1), None, "set", VECTOR.expand(9, -1)),)),
            r"expected \(32,\)",
        ),
        (Continuation(PROMPT, 3, (Onward(Site(SiteName.RESID_PRE, 1), 0, "add", VECTOR / 0),)), "NaN"),
        (
            Continuation(PROMPT, 3, (Intervention(Site(SiteName.RESID_PRE, 1), None, "set", FromRun(SOURCE)),)),
            r"in the prompt: positions 0\.\.6",
        ),
        (
            Continuation(PROMPT, 3, (Intervention(Site(SiteName.RESID_PRE, 1), (7,), "set", FromRun((*SOURCE, 5))),)),
            r"in the prompt: positions 0\.\.6",
        ),
        (
            Continuation(PROMPT, 3, (Intervention(Site(SiteName.PATTERN, 1), (3,), "set", torch.zeros(4, 9)),)),
            "takes numbers",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_a_sentence(
    load_tiny: LoadTiny, engine: Engine, continuation: Continuation, message: str
) -> None:
    with pytest.raises(InvalidRow, match=message):
        engine.submit_continuations(load_tiny("llama", torch.float32), [continuation], job=JobTicket("job", "a"))
