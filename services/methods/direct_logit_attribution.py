"""Direct logit attribution: what each component writes straight into the logits (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits").

1. run each example once and take, at the metric's position, the embedding, every head's z, every MLP's output and the
   last residual stream;
2. hold the final norm's scale at the run's own value, which makes the rest linear (post-norms likewise);
3. a term is its component's output, centred where the norm centres, times the norm's gain, dotted with the metric's
   direction W_U[answer] (− W_U[foil]); biases of the final norm and of the unembedding are terms of their own;
4. where a model is attention alone, its MLPs' terms are zero;
5. the terms must add up to the metric, read independently from the logits before any soft cap;
6. when asked: the same terms at every position, heads' terms by source token, MLPs' terms by neuron, and those of an
   SAE's features in the place of what its site holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from services.contracts.attribution import AttributionResult, AttributionSpec
from services.contracts.direct_logit_attribution import AttributedExample, DirectLogitAttribution, DirectLogitOutcome
from services.contracts.inputs import TokenizedExample
from services.contracts.site import SiteName
from services.engine.outcome import Outcome
from services.engine.row import Capture, Row, Site
from services.engine.weights import Weights
from services.methods.context import MethodContext
from services.methods.direct_logit_details import by_neuron, by_source, strongest
from services.methods.direct_logit_split import FeatureTerms
from services.methods.direct_logit_terms import Aim, MeanTerms, Terms, aim, metric_of, reported, taken_of, terms_of
from services.methods.feature_site import over_norm, site_of
from services.methods.grouping import together
from services.methods.statistics import RunningMean

VERSION = "3"

TOLERANCE = 1e-4
"""Of the sum of the terms' magnitudes: how far their sum may be from the metric in float32."""

TOKENS_AT_ONCE = 2_048


@dataclass
class Found:
    """What is kept of the examples: each one's reported part, and running means of the rest."""

    examples: list[AttributedExample] = field(default_factory=list)
    terms: MeanTerms = field(default_factory=MeanTerms)
    by_position: MeanTerms = field(default_factory=lambda: MeanTerms(("position",)))
    by_source: RunningMean = field(default_factory=RunningMean)
    neurons: RunningMean = field(default_factory=RunningMean)
    split: FeatureTerms | None = None
    worst_gap: float = 0.0

    def reported(self, method: DirectLogitAttribution, *, per_example: bool) -> DirectLogitOutcome:
        return DirectLogitOutcome(
            examples=tuple(self.examples),
            terms=self.terms.reported(),
            by_position=self.by_position.reported() if method.by_position else None,
            by_source=self.by_source.estimate(("layer", "head", "source")) if method.by_source else None,
            neurons=tuple(strongest(self.neurons, method.neurons)) if method.neurons else (),
            split=self.split.reported(method, per_example=per_example) if self.split else None,
        )


def run(spec: AttributionSpec, context: MethodContext) -> AttributionResult:
    """Attribute every example; a positive term raises the metric. Over many examples, means with standard errors."""
    assert isinstance(spec.method, DirectLogitAttribution)
    work = _Work(spec, spec.method, context, context.weights())
    found = Found(split=FeatureTerms(context.sae, work.weights, context) if context.sae else None)
    for examples in together(context.inputs.examples, lambda example: len(example.prompt.ids), TOKENS_AT_ONCE):
        aims = [aim(example, spec.metric, work.weights) for example in examples]
        rows = [work.row(example, aimed) for example, aimed in zip(examples, aims, strict=True)]
        for example, aimed, row, outcome in zip(examples, aims, rows, context.run(rows), strict=True):
            work.attribute(example, aimed, row, outcome, found)
    if found.worst_gap > TOLERANCE:
        context.warnings.append(
            f"the terms miss the metric by up to {found.worst_gap:.2g} of the sum of their magnitudes (expected at "
            f"most {TOLERANCE:g}): {context.model.dtype} may be too coarse for this model"
        )
    if found.split and (over := found.split.over_norm()):
        where = " at the metric's position"
        context.warnings.append(f"{over_norm(over, where=where)}: not encoded")
    return AttributionResult(
        attribution=found.reported(spec.method, per_example=spec.per_example),
        warnings=tuple(context.warnings),
        provenance=context.provenance("direct_logit_attribution", VERSION),
        usage=context.usage(),
    )


@dataclass(frozen=True, eq=False)
class _Work:
    spec: AttributionSpec
    method: DirectLogitAttribution
    context: MethodContext
    weights: Weights

    def row(self, example: TokenizedExample, aimed: Aim) -> Row:
        captures = tuple(dict.fromkeys(self._captures(aimed.position)))
        return Row(example.prompt.ids, captures=captures, readout=aimed.readout)

    def _captures(self, position: int) -> Iterator[Capture]:
        facts, at = self.context.model.facts, (position,)
        positions = None if self.method.by_position else at
        yield Capture(Site(SiteName.RESID_PRE, 0), positions)
        yield Capture(Site(SiteName.RESID_POST, facts.layers - 1), positions)
        if self.context.sae is not None:
            yield replace(site_of(self.context.sae), positions=positions)
        for layer in range(facts.layers):
            yield Capture(Site(SiteName.Z, layer), positions)
            if facts.d_mlp > 0:
                yield Capture(Site(SiteName.MLP_OUT, layer), positions)
            if self.method.by_source:
                yield Capture(Site(SiteName.PATTERN, layer), at)
                yield Capture(Site(SiteName.V, layer))
            if self.method.neurons:
                yield Capture(Site(SiteName.MLP_POST, layer), at)

    def attribute(self, example: TokenizedExample, aimed: Aim, row: Row, outcome: Outcome, found: Found) -> None:
        """Add one example to what was found."""
        weights, layers = self.weights, self.context.model.facts.layers
        taken = taken_of(row, outcome, aimed.direction)
        everywhere = terms_of(taken, layers, aimed, weights)
        at = aimed.position if self.method.by_position else 0
        terms, metric = everywhere.at(at), metric_of(outcome, weights)
        found.terms.add(terms)
        found.examples.append(self._reported(example, metric, terms))
        found.worst_gap = max(found.worst_gap, abs(metric - terms.sum) / max(terms.magnitude, 1e-30))
        if self.method.by_position:
            found.by_position.add(everywhere)
        final = taken[SiteName.RESID_POST, layers - 1][at]
        if found.split:
            facts = found.split.in_use.facts
            gap = found.split.add(taken[facts.site, facts.layer][at], final, aimed, metric, terms)
            found.worst_gap = max(found.worst_gap, gap)
        before_norm = weights.final_norm.carried_back(aimed.direction, weights.final_norm.scale(final))
        if self.method.by_source:
            found.by_source.add(by_source(taken, at, layers, before_norm, weights))
        if self.method.neurons:
            found.neurons.add(by_neuron(taken, layers, before_norm, weights))

    def _reported(self, example: TokenizedExample, metric: float, terms: Terms) -> AttributedExample:
        return AttributedExample(
            tokens=example.prompt,
            metric=metric,
            sum_of_terms=terms.sum,
            gap=abs(metric - terms.sum),
            terms=reported(terms) if self.spec.per_example else None,
        )
