"""Features changed and directions projected out, in rows and in continuations; and texts read token by token."""

from typing import Any

import pytest
import torch
from torch import Tensor

from services.contracts.site import SiteName
from services.engine.check import InvalidRow
from services.engine.decoding import Continuation, Onward
from services.engine.engine import Engine
from services.engine.readout import TextLogProbs, TokenLogits, TokenLogProbs
from services.engine.row import FeatureChange, Intervention, Row, Site
from services.engine.ticket import JobTicket
from services.saes.sae import Sae, TopK
from tests.families import D_MODEL
from tests.services.engine.conftest import LoadTiny, Plain

TOKENS = (17, 41, 5, 230, 99, 8, 77)
FEATURES = 48
GENERATOR = torch.Generator().manual_seed(9)
DIRECTION = torch.randn(D_MODEL, generator=GENERATOR)
SAE = Sae(
    W_enc=torch.randn(D_MODEL, FEATURES, generator=GENERATOR),
    b_enc=torch.randn(FEATURES, generator=GENERATOR),
    W_dec=torch.randn(FEATURES, D_MODEL, generator=GENERATOR),
    b_dec=torch.randn(D_MODEL, generator=GENERATOR),
    activation=TopK(6),
    apply_b_dec_to_input=True,
    hook_name="blocks.1.hook_resid_post",
)
RESID, Z = Site(SiteName.RESID_POST, 1), Site(SiteName.Z, 1)
CHANGE = FeatureChange(SAE, added=((3, 1.5),), clamped=((5, 4.0), (6, 0.0)))


def changed(x: Tensor) -> Tensor:
    """What CHANGE makes of [position, d_model]."""
    features, d = SAE.encode(x), SAE.W_dec
    return x + 1.5 * d[3] + (4 - features[:, 5, None]) * d[5] - features[:, 6, None] * d[6]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("positions", [None, (2, 4, 6)])
def test_features_change_and_directions_go_as_by_hand(
    load_tiny: LoadTiny, engine: Engine, job: JobTicket, family: str, positions: tuple[int, ...] | None
) -> None:
    model = load_tiny(family, torch.float32)
    plain, chosen = Plain(model), list(range(len(TOKENS)) if positions is None else positions)
    unit = DIRECTION / DIRECTION.norm()

    def at_chosen(change: Any) -> Any:
        def apply(x: Tensor) -> Tensor:
            x[chosen] = change(x[chosen])
            return x

        return apply

    expected = [
        plain.logits(TOKENS, (SiteName.RESID_POST, 1, at_chosen(changed)))[-1],
        plain.logits(TOKENS, (SiteName.RESID_POST, 1, at_chosen(lambda x: x - (x @ unit)[:, None] * unit)))[-1],
    ]
    changes = [
        Intervention(RESID, positions, "change_features", CHANGE),
        Intervention(RESID, positions, "project_out", 3 * DIRECTION),
    ]
    rows = [Row(TOKENS, (change,), readout=TokenLogits(len(TOKENS) - 1, None)) for change in changes]
    for outcome, logits in zip(engine.run(model, rows, job=job), expected, strict=True):
        torch.testing.assert_close(outcome.values(), logits, atol=1e-4, rtol=1e-4)


def test_parallel_features_are_projected_out_as_one(load_tiny: LoadTiny, engine: Engine, job: JobTicket) -> None:
    """Their decoder rows span one axis less than they are: what lies on the others is untouched."""
    model = load_tiny("llama", torch.float32)
    rows = SAE.W_dec.clone()
    rows[4] = -1e-3 * rows[3]
    sae = Sae(**{**vars(SAE), "W_dec": rows})

    def by_hand(x: Tensor) -> Tensor:
        span = rows[[3, 5]].double().T
        inside: Tensor = span @ torch.linalg.pinv(span) @ x.double().T
        return x - inside.T.to(x)

    expected = Plain(model).logits(TOKENS, (SiteName.RESID_POST, 1, by_hand))[-1]
    change = FeatureChange(sae, projected_out=(3, 4, 5))
    row = Row(TOKENS, (Intervention(RESID, None, "change_features", change),), readout=TokenLogits(6, None))
    torch.testing.assert_close(engine.run(model, [row], job=job)[0].values(), expected, atol=1e-4, rtol=1e-4)


def test_features_of_all_heads_side_by_side_can_be_changed(load_tiny: LoadTiny, engine: Engine, job: JobTicket) -> None:
    model = load_tiny("gpt2", torch.float32)

    def by_hand(z: Tensor) -> Tensor:
        return changed(z.flatten(1)).reshape(z.shape)

    expected = Plain(model).logits(TOKENS, (SiteName.Z, 1, by_hand))[-1]
    row = Row(TOKENS, (Intervention(Z, None, "change_features", CHANGE),), readout=TokenLogits(len(TOKENS) - 1, None))
    torch.testing.assert_close(engine.run(model, [row], job=job)[0].values(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt"])
def test_a_text_reads_at_each_place_what_a_single_token_reads_there(
    load_tiny: LoadTiny, engine: Engine, job: JobTicket, family: str
) -> None:
    model = load_tiny(family, torch.float32)
    change = (Intervention(RESID, (3, 5), "scale", 2.0),)
    texts = [Row(TOKENS, given, readout=TextLogProbs(2, TOKENS[3:])) for given in ((), change)]
    singles = [
        Row(TOKENS, given, readout=TokenLogProbs(2 + place, (token,)))
        for given in ((), change)
        for place, token in enumerate(TOKENS[3:])
    ]
    found = torch.cat([outcome.values() for outcome in engine.run(model, texts, job=job)])
    expected = torch.cat([outcome.values() for outcome in engine.run(model, singles, job=job)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Intervention(RESID, None, "project_out", torch.zeros(D_MODEL)), "nowhere zero"),
        (Intervention(RESID, None, "project_out", 2.0), "nowhere zero"),
        (Intervention(RESID, None, "add", CHANGE), "do not go together"),
        (Intervention(RESID, None, "change_features", DIRECTION), "do not go together"),
        (Intervention(Site(SiteName.MLP_POST, 1), None, "change_features", CHANGE), "a dictionary of width"),
        (Intervention(Site(SiteName.PATTERN, 1), None, "change_features", CHANGE), "has no features"),
        (Intervention(RESID, None, "change_features", FeatureChange(SAE, ((FEATURES, 1.0),))), "features are 0..47"),
        (Intervention(RESID, None, "change_features", FeatureChange(SAE, ((0, float("inf")),))), "amounts finite"),
        (Intervention(RESID, None, "change_features", FeatureChange(SAE, projected_out=(FEATURES,))), "are 0..47"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(
    load_tiny: LoadTiny, engine: Engine, job: JobTicket, change: Intervention, message: str
) -> None:
    model = load_tiny("llama", torch.float32)
    with pytest.raises(InvalidRow, match=message):
        engine.submit(model, [Row(TOKENS, (change,))], job=job)
    onward = Onward(change.site, 1, change.operation, change.value)  # type: ignore[arg-type]  # no run's activation
    with pytest.raises(InvalidRow):
        engine.submit_continuations(model, [Continuation(TOKENS, 3, (onward,))], job=job)
