"""Every readout, on patched and unpatched rows, against arithmetic on a plain forward pass's logits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from services.contracts.site import SiteName
from services.engine.check import InvalidRow
from services.engine.engine import Engine
from services.engine.readout import Divergence, Loss, Readout, TokenLogits, TokenLogProbs, TopK, TopTokens
from services.engine.row import Capture, FromRun, Intervention, Row, Site
from services.engine.ticket import JobTicket
from tests.services.engine.conftest import LoadTiny, Plain

CORRUPTED = (17, 41, 5, 230, 99, 8, 120, 77)
CLEAN = (17, 41, 5, 61, 99, 8, 120, 78)
PATCH = Intervention(Site(SiteName.RESID_PRE, 1), (3, 5), "set", FromRun(CLEAN))
LAST = len(CLEAN) - 1

Expected = Callable[[Tensor, Tensor], Tensor]
NUMBERS: dict[Readout, Expected] = {
    TokenLogits(LAST, (4, 9)): lambda logits, _: logits[LAST, [4, 9]],
    TokenLogits(6, (4,)): lambda logits, _: logits[6, [4]],
    TokenLogProbs(LAST, (9, 4)): lambda logits, _: logits[LAST].log_softmax(-1)[[9, 4]],
    TokenLogProbs(2, None): lambda logits, _: logits[2].log_softmax(-1),
    Divergence(LAST, CLEAN): lambda logits, clean: torch.nn.functional.kl_div(
        logits[LAST].log_softmax(-1), clean[LAST].log_softmax(-1), log_target=True, reduction="sum"
    ),
    Loss(CLEAN[1:]): lambda logits, _: -logits[:-1].log_softmax(-1)[range(LAST), list(CLEAN[1:])].mean(),
    Loss(CORRUPTED[1:4]): lambda logits, _: -logits[:3].log_softmax(-1)[range(3), list(CORRUPTED[1:4])].mean(),
}


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "granite", "llama"])
@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_readouts_are_what_the_logits_say(
    family: str, patched: bool, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    plain = Plain(model)
    clean = plain.logits(CLEAN)
    donor = plain.activation(CLEAN, SiteName.RESID_PRE, 1)

    def change(activation: Tensor) -> Tensor:
        activation[[3, 5]] = donor[[3, 5]]
        return activation

    logits = plain.logits(CORRUPTED, *([(SiteName.RESID_PRE, 1, change)] if patched else []))
    interventions = (PATCH,) if patched else ()
    rows = [Row(CORRUPTED, interventions, readout=readout) for readout in (*NUMBERS, TopK(LAST, 5))]
    *found, top = engine.run(model, rows, job=job)
    for outcome, (readout, expected) in zip(found, NUMBERS.items(), strict=True):
        torch.testing.assert_close(
            outcome.values(), expected(logits, clean).float(), rtol=0, atol=3e-6, msg=f"{family} {readout}"
        )
    assert isinstance(top.reading, TopTokens)
    best = logits[LAST].topk(5)
    assert top.reading.tokens.tolist() == best.indices.tolist()
    torch.testing.assert_close(top.reading.logits, best.values.float(), rtol=0, atol=3e-6)


def test_a_divergence_from_itself_is_zero(load_tiny: LoadTiny, engine: Engine, job: JobTicket) -> None:
    (outcome,) = engine.run(load_tiny("llama", torch.float32), [Row(CLEAN, readout=Divergence(3, CLEAN))], job=job)
    assert abs(float(outcome.values())) < 1e-6


def test_a_row_of_captures_alone_has_no_reading(load_tiny: LoadTiny, engine: Engine, job: JobTicket) -> None:
    (outcome,) = engine.run(
        load_tiny("llama", torch.float32), [Row(CLEAN, captures=(Capture(Site(SiteName.RESID_PRE, 1)),))], job=job
    )
    assert outcome.reading is None
    with pytest.raises(TypeError, match="does not yield plain numbers"):
        outcome.values()


INVALID: dict[str, tuple[Row, str]] = {
    "no tokens": (Row(()), "a row of 0 tokens"),
    "a token outside the vocabulary": (Row((5, 320)), "token ids of tiny-llama are 0..319"),
    "more tokens than the context": (Row((5,) * 129), "reads 1 to 128"),
    "an unknown layer": (
        Row((5, 6), captures=(Capture(Site(SiteName.Z, 3)),)),
        "layer 3 does not exist: tiny-llama has layers 0..2",
    ),
    "a layer of the embedding": (Row((5, 6), captures=(Capture(Site(SiteName.EMBED, 0)),)), "embed has no layer"),
    "an unknown KV head": (Row((5, 6), captures=(Capture(Site(SiteName.K, 0, head=2)),)), "heads are 0..1"),
    "a head of the residual stream": (Row((5, 6), captures=(Capture(Site(SiteName.RESID_PRE, 0, head=0)),)), "head 0"),
    "a position behind the end": (Row((5, 6), readout=TokenLogits(2, (1,))), "different ones of 0..1"),
    "one position twice": (Row((5, 6), captures=(Capture(Site(SiteName.Z, 0), (1, 1)),)), "different ones"),
    "targets for more positions than there are": (Row((5, 6), readout=Loss((1, 2, 3))), "different ones of 0..1"),
    "a reference that is too short": (Row((5, 6), readout=Divergence(1, (5,))), "different ones of 0..0"),
    "a value of another shape": (
        Row((5, 6), (Intervention(Site(SiteName.Z, 0), (1,), "set", torch.zeros(3)),)),
        r"expected \(4, 12\) or \(1, 4, 12\)",
    ),
    "a value with NaN": (
        Row((5, 6), (Intervention(Site(SiteName.Z, 0, head=1), (1,), "set", torch.full((12,), torch.nan)),)),
        "NaN",
    ),
    "an infinite number": (
        Row((5, 6), (Intervention(Site(SiteName.Z, 0), None, "set", float("inf")),)),
        "must be finite",
    ),
    "a run that is shorter than the patch": (
        Row((5, 6), (Intervention(Site(SiteName.Z, 0), None, "set", FromRun((5,))),)),
        "nothing at position 1",
    ),
    "a pattern of a run of another length": (
        Row((5, 6), (Intervention(Site(SiteName.PATTERN, 0), (1,), "set", FromRun((5, 6, 7))),)),
        "pattern of a run of 3 tokens in one of 2",
    ),
}


@pytest.mark.parametrize("what", INVALID)
def test_a_row_that_cannot_run_is_refused_with_what_is_allowed(
    what: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    row, message = INVALID[what]
    with pytest.raises(InvalidRow, match=message):
        engine.submit(load_tiny("llama", torch.float32), [row], job=job)


def test_scores_of_minus_infinity_cut_attention(load_tiny: LoadTiny, engine: Engine, job: JobTicket) -> None:
    model = load_tiny("llama", torch.float32)
    pattern = Capture(Site(SiteName.PATTERN, 1, head=2), (LAST,))
    scores = Site(SiteName.ATTN_SCORES, 1, head=2)
    blocked = torch.zeros(len(CLEAN))
    (before,) = engine.run(model, [Row(CLEAN, captures=(pattern,))], job=job)
    knockout = Intervention(scores, (LAST,), "add", blocked.index_fill(0, torch.tensor([3]), -1e9))
    (after,) = engine.run(model, [Row(CLEAN, (knockout,), captures=(pattern,))], job=job)
    assert before.captures[pattern][0, 3] > 0
    assert after.captures[pattern][0, 3] == 0
    everything_cut = Intervention(scores, None, "set", -float("inf"))
    (cut,) = engine.run(model, [Row(CLEAN, (everything_cut,), captures=(pattern,))], job=job)
    assert cut.captures[pattern].isnan().all()
