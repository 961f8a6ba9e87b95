"""Results of attribution, one maker per method."""

import numpy as np
import numpy.typing as npt

from services.contracts.attribution import AttributionResult
from services.contracts.attribution_patching import (
    AttributionCheck,
    AttributionPair,
    AttributionPatchingOutcome,
    CheckedNode,
    NodeEffects,
)
from services.contracts.direct_logit_attribution import (
    AttributedExample,
    DirectLogitOutcome,
    NeuronContribution,
)
from services.contracts.direct_logit_terms import DirectLogitTerms
from services.contracts.edge_attribution_patching import EdgeAttributionOutcome, EdgeCounts, EdgePair, ScoredEdge
from services.contracts.feature_attribution import (
    AttributedFeature,
    CheckedCell,
    CheckedEffect,
    CheckedFeature,
    FeatureAttributionOutcome,
    FeatureCheck,
    FeatureRun,
    PositionCheck,
)
from services.contracts.gradient_x_input import GradientXInputOutcome, InputAttributions
from services.contracts.integrated_gradients import IntegratedExample, IntegratedGradientsOutcome
from services.contracts.result import Baselines, PairTokens
from services.contracts.site import SiteName
from services.contracts.tensor import Estimate, InlineTensor, ScalarStatistic
from tests.services.figures import features_changed
from tests.services.figures.samples import CLEAN, CORRUPTED, about, estimate, ramp, tokens


def direct_logit_of_features(count: int = 1, *, listed: bool = True) -> AttributionResult:
    result = direct_logit(count)
    assert isinstance(result.attribution, DirectLogitOutcome)
    return result.model_copy(update={"attribution": features_changed.split(result.attribution, listed=listed)})


def direct_logit(count: int = 1, *, split: bool = False) -> AttributionResult:
    """Three layers of four heads; `split`: also by position, by source and by neuron."""
    example = AttributedExample(tokens=tokens(), metric=3.0, sum_of_terms=3.0, gap=0.0)
    contribution = ScalarStatistic(mean=0.5, standard_error=0.1 if count > 1 else None, count=count)
    outcome = DirectLogitOutcome(
        examples=(example,) * count,
        terms=_terms(count),
        by_position=_terms(count, len(CLEAN)) if split else None,
        by_source=estimate(ramp(3, 4, len(CLEAN)), ("layer", "head", "source"), count) if split else None,
        neurons=(NeuronContribution(layer=2, neuron=77, contribution=contribution),) if split else (),
    )
    return AttributionResult(attribution=outcome, **about("direct_logit_attribution"))


def _terms(count: int, *positions: int) -> DirectLogitTerms:
    """The largest is the first MLP, then the last heads; the same at every position when there are `positions`."""
    axis = ("position",) * len(positions)

    def term(values: npt.ArrayLike, *dims: str) -> Estimate:
        array = np.asarray(values, dtype=np.float32)
        repeated = np.multiply.outer(array, np.ones(positions, dtype=np.float32))
        return estimate(repeated, (*dims, *axis), count)

    return DirectLogitTerms(
        embedding=term(0.5),
        heads=term(ramp(3, 4), "layer", "head"),
        attention_bias=term(np.zeros(3), "layer"),
        mlps=term([5.0, -0.5, 0.25], "layer"),
        final_norm_bias=term(0.0),
        unembedding_bias=term(0.0),
    )


def gradient_x_input(strings: tuple[str, ...] = CLEAN) -> AttributionResult:
    values = InlineTensor.of(ramp(len(strings)), ("position",))
    example = InputAttributions(tokens=tokens(strings), metric=3.0, attributions=values)
    return AttributionResult(
        attribution=GradientXInputOutcome(examples=(example, example)), **about("gradient_x_input")
    )


def integrated_gradients(strings: tuple[str, ...] = CLEAN) -> AttributionResult:
    example = IntegratedExample(
        tokens=tokens(strings),
        baseline_tokens=tokens(strings),
        metric=3.0,
        baseline_metric=-4.0,
        attributions=InlineTensor.of(ramp(len(strings)), ("position",)),
        sum=6.99,
        completeness_gap=0.01,
    )
    outcome = IntegratedGradientsOutcome(baseline="corrupted", steps=50, quadrature="midpoint", examples=(example,))
    return AttributionResult(attribution=outcome, **about("integrated_gradients"))


def attribution_patching(count: int = 1, *, with_signs: bool = True) -> AttributionResult:
    """z by head at two named positions, mlp_out by layer, and three nodes patched exactly."""
    axes = {"layers": (0, 1, 2), "signed": with_signs}
    nodes = (
        NodeEffects(
            site=SiteName.Z,
            heads=(0, 1, 2, 3),
            positions=("S2", "END"),
            effects=estimate(ramp(3, 4, 2), ("layer", "head", "position"), count),
            **axes,
        ),
        NodeEffects(
            site=SiteName.MLP_OUT, heads=None, positions=None, effects=estimate(ramp(3), ("layer",), count), **axes
        ),
    )
    cells = tuple(
        CheckedNode(site=SiteName.Z, layer=0, head=0, position="S2", chosen=chosen, estimated=estimated, exact=1.0)
        for chosen, estimated in (("top", 1.25), ("top", 0.5), ("sampled", 0.0))
    )
    check = AttributionCheck(rank_correlation=None, largest_error=1.0, false_negatives=1, cells=cells)
    pair = AttributionPair(
        tokens=PairTokens(clean=tokens(), corrupted=tokens(CORRUPTED)),
        differing_positions=(6,),
        baselines=Baselines(clean=3.0, corrupted=-4.0),
    )
    outcome = AttributionPatchingOutcome(
        variant="atp_star", mode="denoising", nodes=nodes, pairs=(pair,) * count, check=check
    )
    return AttributionResult(attribution=outcome, **about("attribution_patching"))


def edges(count: int = 1, *, scores: bool = True) -> AttributionResult:
    """Three writers by three readers of a graph, some edges impossible."""
    writers, readers = ("input", "a0.h0", "m0"), ("a0.h0<q>", "a1.h0<k>", "logits")
    matrix = InlineTensor.of([[0.5, -2.0, 0.1], [np.nan, 1.0, 0.2], [np.nan, -0.3, 0.4]], ("writer", "reader"))
    score = ScalarStatistic(mean=-2.0, standard_error=0.1 if count > 1 else None, count=count)
    pair = EdgePair(
        tokens=PairTokens(clean=tokens(), corrupted=tokens(CORRUPTED)),
        differing_positions=(6,),
        baselines=Baselines(clean=3.0, corrupted=-4.0),
        scores=matrix if scores else None,
    )
    outcome = EdgeAttributionOutcome(
        variant="eap_ig_inputs",
        steps=5,
        quadrature="midpoint",
        writers=writers,
        readers=readers,
        scores=matrix if scores else None,
        edges=(ScoredEdge(edge="input->a1.h0<k>", score=score), ScoredEdge(edge="a0.h0->a1.h0<k>", score=score)),
        edge_counts=EdgeCounts(edges=7, per_query_head=9),
        pairs=(pair,) * count,
    )
    return AttributionResult(attribution=outcome, **about("edge_attribution_patching"))


def feature_attribution(*, by_position: bool = False) -> AttributionResult:
    """Two features, the error, and one feature checked; by position also two cells at the second token."""
    one = ScalarStatistic(mean=1.5, standard_error=None, count=1)
    compared = CheckedEffect(estimated=one, exact=one, gap=one)
    features = tuple(AttributedFeature(index=index, effect=one) for index in (7, 42))
    cell = CheckedFeature(index=7, chosen="top", estimated=1.5, exact=1.0)
    ran = FeatureRun(
        tokens=tokens(CORRUPTED),
        source_tokens=tokens(),
        metric=-4.0,
        source_metric=3.0,
        left_out=(0,),
        error=1.5,
        sum=4.5,
        exact=5.0,
    )
    placed = PositionCheck(
        rank_correlation=1.0,
        largest_error=0.25,
        false_negatives=0,
        cells=(
            CheckedCell(index=7, position=1, chosen="top", estimated=1.5, exact=1.25),
            CheckedCell(index=None, position=1, chosen="sampled", estimated=0.5, exact=0.5),
        ),
    )
    outcome = FeatureAttributionOutcome(
        site=SiteName.RESID_POST,
        layer=1,
        source="other_run",
        mode="denoising",
        estimate="integrated_gradients",
        steps=10,
        quadrature="midpoint",
        features=features,
        changed=2,
        error=compared,
        total=compared,
        runs=(ran,),
        check=FeatureCheck(rank_correlation=None, largest_error=0.5, false_negatives=0, cells=(cell,)),
        check_by_position=placed if by_position else None,
    )
    return AttributionResult(attribution=outcome, **about("feature_attribution"))
