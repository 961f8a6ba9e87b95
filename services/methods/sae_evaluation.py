"""How well an SAE rebuilds activations, and what the model loses when they are replaced (Bricken et al. 2023;
Gao et al. 2024, arXiv:2406.04093; the unfiltered figures are those of SAELens' `run_evals`).

1. run each prompt up to the SAE's layer and take the activations x at its site; a transcoder's input there, and x where
   it writes;
2. encode and decode them: L0, MSE, cosine, explained variance, and how often each feature fires;
3. run on from there with x̂, with zeros and with the mean in x's place, at every position; with the norm filter,
   positions over the SAE's threshold keep their x in all three;
4. per run the mean loss of the next token, and KL(clean ‖ run); recovered = (ablated − sae) / (ablated − clean).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from services.catalogue.costs.cost import unembedding_token_layers
from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.result import PromptTokens
from services.contracts.sae_evaluation import (
    DensityHistogram,
    Recovered,
    SaeEvaluationResult,
    SaeEvaluationSpec,
    SaeFidelity,
    SplicedRun,
)
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor
from services.engine.row import Capture, Intervention, Row, Site
from services.engine.weights import Weights
from services.methods.context import MethodContext
from services.methods.grouping import together
from services.methods.metric import finite
from services.methods.sae_places import SaePlaces
from services.methods.statistics import VANISHING
from services.saes.fidelity import Fidelity
from services.saes.sae import Sae

VERSION = "1"

TOKENS_AT_ONCE = 2_048
"""Prompts are run together up to about this many tokens, so that a job's memory does not grow with its prompts."""

UNEMBEDDED_AT_ONCE = 64
"""Positions unembedded at once: few enough for their logits over the vocabulary to stay small."""

ENCODED_AT_ONCE = 2**24
"""Feature activations held at once: tokens times features."""

SPLICES = ("sae", "zero_ablation", "mean_ablation")

Activations = Float[Tensor, "token width"]


@dataclass
class _Loss:
    """Sums over predictions and over tokens, in nats."""

    cross_entropy: float = 0.0
    kl: float = 0.0


@dataclass
class _Way:
    """What accumulates of one way to treat tokens over the norm threshold."""

    filtered: bool
    fidelity: Fidelity
    mean: Float[Tensor, " d_out"]
    losses: dict[str, _Loss] = field(default_factory=lambda: {name: _Loss() for name in SPLICES})

    def kept(self, sae: Sae, x: Activations) -> Bool[Tensor, " token"]:
        """Which tokens are encoded and replaced."""
        return sae.within_norm(x) if self.filtered else torch.ones(len(x), dtype=torch.bool, device=x.device)

    def splices(self, sae: Sae, read: "_Read") -> Iterator[Activations]:
        """What takes x's place in each of `SPLICES`."""
        kept, at_once = self.kept(sae, read.inputs), max(1, ENCODED_AT_ONCE // sae.d_sae)
        pieces = zip(torch.split(read.inputs[kept], at_once), torch.split(read.x[kept], at_once), strict=True)
        rebuilt = torch.cat([self.fidelity.add(sae, inputs, x) for inputs, x in pieces])
        for value in (rebuilt, torch.zeros_like(rebuilt), self.mean.to(rebuilt).expand_as(rebuilt)):
            yield read.x.masked_scatter(kept[:, None], value)


@dataclass(frozen=True)
class _Read:
    """A prompt, what the SAE reads of it, and what it is to rebuild; in the SAE's precision."""

    prompt: PromptTokens
    inputs: Activations
    x: Activations


def run(spec: SaeEvaluationSpec, context: MethodContext) -> SaeEvaluationResult:
    """Measure the SAE on the prompts. Losses and divergences are in nats."""
    assert context.sae is not None, "the worker loads the SAE that the specification names"
    sae, facts = context.sae.sae, context.sae.facts
    places = SaePlaces(facts, context.model)
    groups: Iterable[list[_Read]] = _read(context, sae, places)
    filters = spec.filters(facts.norm_threshold)
    if sae.mean_activation is None:
        groups = list(groups)
        means = [_mean_of(groups, sae, filtered=filtered) for filtered in filters]
    else:
        means = [sae.mean_activation for _ in filters]
    ways = [_Way(filtered, Fidelity(sae.d_out, sae.d_sae), mean) for filtered, mean in zip(filters, means, strict=True)]
    measurement = _Measurement(context, sae, places, ways)
    for group in groups:
        measurement.add(group)
    by_filter = {way.filtered: measurement.fidelity(way, densities=spec.densities) for way in ways}
    return SaeEvaluationResult(
        sae=spec.sae,
        layer=facts.layer,
        site=facts.site,
        output=facts.output,
        mean="text_mean" if sae.mean_activation is None else "sae_mean",
        prompts=len(context.inputs.prompts),
        tokens=context.inputs.tokens(),
        tokens_over_norm=measurement.over_norm,
        predictions=measurement.predictions,
        cross_entropy=measurement.clean,
        with_norm_filter=by_filter.get(True),
        without_norm_filter=by_filter.get(False),
        warnings=tuple(context.warnings),
        provenance=context.provenance("sae_evaluation", VERSION),
        usage=context.usage(),
    )


def _read(context: MethodContext, sae: Sae, places: SaePlaces) -> Iterator[list[_Read]]:
    captures = tuple(dict.fromkeys((places.reads, places.rebuilds)))
    for prompts in together(context.inputs.prompts, lambda prompt: len(prompt.ids), TOKENS_AT_ONCE):
        outcomes = context.run([Row(prompt.ids, captures=captures) for prompt in prompts])
        group = [
            _Read(prompt, places.inputs(outcome).to(sae.W_enc), places.targets(outcome).to(sae.W_dec))
            for prompt, outcome in zip(prompts, outcomes, strict=True)
        ]
        if not all(bool(read.inputs.isfinite().all() & read.x.isfinite().all()) for read in group):
            message = "activations overflow on a prompt: leave it out, or use a wider dtype"
            raise JobFailed(ErrorCode.METHOD_FAILED, message)
        yield group


def _mean_of(groups: Sequence[list[_Read]], sae: Sae, *, filtered: bool) -> Float[Tensor, " d_out"]:
    """The mean activation of all tokens, or of those within the norm threshold; zero when there is none."""
    total, tokens = torch.zeros(sae.d_out, dtype=torch.float64, device=sae.W_enc.device), 0
    for read in (read for group in groups for read in group):
        x = read.x[sae.within_norm(read.inputs)] if filtered else read.x
        total += x.double().sum(0)
        tokens += len(x)
    return (total / max(1, tokens)).to(sae.W_enc)


class _Measurement:
    """Sums over prompts."""

    def __init__(self, context: MethodContext, sae: Sae, places: SaePlaces, ways: Sequence[_Way]) -> None:
        self.predictions = 0
        self.over_norm = 0
        self._context, self._sae, self._places, self._ways = context, sae, places, ways
        self._end = Capture(Site(SiteName.RESID_POST, context.model.facts.layers - 1))
        self._weights = context.weights()
        self._clean = _Loss()

    @property
    def clean(self) -> float:
        """Mean cross-entropy of the clean run."""
        return finite(self._clean.cross_entropy / self.predictions, "the clean run's loss")

    def add(self, group: Sequence[_Read]) -> None:
        """Run a group's prompts clean and spliced, and account for their losses."""
        started = time.monotonic()
        rows = [row for read in group for row in self._rows(read)]
        self._context.charge(0, time.monotonic() - started)
        outcomes = iter(self._context.run(rows))
        losses = [self._clean, *(way.losses[name] for way in self._ways for name in SPLICES)]
        for read in group:
            ends = [next(outcomes).captures[self._end] for _ in losses]
            self._account(read.prompt, ends, losses)

    def _rows(self, read: _Read) -> Iterator[Row]:
        """The clean row, then every way's splices in their order."""
        tokens = read.prompt.ids
        self.predictions += len(tokens) - 1
        self.over_norm += int((~self._sae.within_norm(read.inputs)).sum())
        yield Row(tokens, captures=(self._end,))
        for way in self._ways:
            for value in way.splices(self._sae, read):
                if not bool(value.isfinite().all()):
                    raise JobFailed(ErrorCode.METHOD_FAILED, "the SAE's reconstruction overflows on a prompt")
                spliced = Intervention(self._places.rebuilds.site, None, "set", self._places.at_site(value))
                yield Row(tokens, (spliced,), captures=(self._end,))

    def _account(self, prompt: PromptTokens, ends: Sequence[Activations], losses: Sequence[_Loss]) -> None:
        """Unembeds the final residual streams of one prompt's runs, the clean one first, some positions at a time."""
        unembedding = unembedding_token_layers(self._context.model.facts)
        following = torch.tensor(prompt.ids[1:])
        for first in range(0, len(prompt.ids), UNEMBEDDED_AT_ONCE):
            started = time.monotonic()
            piece = slice(first, first + UNEMBEDDED_AT_ONCE)
            targets = following[piece]
            clean: Tensor | None = None
            for end, loss in zip(ends, losses, strict=True):
                log_probs = _log_probs(self._weights, end[piece])
                clean = log_probs if clean is None else clean
                loss.cross_entropy -= float(log_probs[range(len(targets)), targets].double().sum())
                loss.kl += _divergence(clean, log_probs)
            positions = len(ends[0][piece])
            self._context.charge(positions * len(ends) * unembedding, time.monotonic() - started)

    def fidelity(self, way: _Way, *, densities: bool) -> SaeFidelity:
        """The figures of one way; raises JobFailed when a loss is not a number."""
        fidelity, runs = way.fidelity, {name: self._mean(way.losses[name], name) for name in SPLICES}
        edges, counts = fidelity.density_histogram()
        stored = self._sae.mean_activation
        of_text = fidelity.explained_variance(fidelity.mean)
        return SaeFidelity(
            tokens=fidelity.tokens,
            l0=fidelity.l0,
            mse=fidelity.mse,
            cosine=fidelity.cosine,
            explained_variance=of_text if stored is None else fidelity.explained_variance(stored),
            explained_variance_text_mean=of_text,
            dead_fraction=fidelity.dead_fraction,
            dense_fraction=fidelity.dense_fraction,
            density_histogram=DensityHistogram(edges=edges, counts=counts),
            densities=InlineTensor.of(fidelity.densities, ("feature",)) if densities else None,
            **runs,
            cross_entropy_recovered=self._recovered("cross_entropy", self.clean, runs),
            kl_recovered=self._recovered("kl", 0.0, runs),
        )

    def _mean(self, loss: _Loss, name: str) -> SplicedRun:
        tokens = self._context.inputs.tokens()
        cross_entropy = finite(loss.cross_entropy / self.predictions, f"the loss under {name}")
        return SplicedRun(cross_entropy=cross_entropy, kl=finite(loss.kl / tokens, f"the divergence under {name}"))

    def _recovered(self, name: str, clean: float, runs: dict[str, SplicedRun]) -> Recovered:
        spliced = getattr(runs["sae"], name)
        return Recovered(
            against_zero=self._fraction(name, "zero_ablation", clean, spliced, runs),
            against_mean=self._fraction(name, "mean_ablation", clean, spliced, runs),
        )

    def _fraction(
        self, name: str, ablation: str, clean: float, spliced: float, runs: dict[str, SplicedRun]
    ) -> float | None:
        ablated = getattr(runs[ablation], name)
        if abs(ablated - clean) < VANISHING * max(1.0, abs(clean)):
            warning = f"{ablation} changes {name} too little to say which fraction the SAE recovers"
            if warning not in self._context.warnings:
                self._context.warnings.append(warning)
            return None
        return float((ablated - spliced) / (ablated - clean))


def _log_probs(weights: Weights, residual: Activations) -> Float[Tensor, "token vocabulary"]:
    logits = weights.logits(residual.to(weights.W_U))
    return logits.float().log_softmax(-1).cpu()


def _divergence(clean: Float[Tensor, "token vocabulary"], other: Float[Tensor, "token vocabulary"]) -> float:
    """KL(clean ‖ other), summed over tokens, in nats."""
    if other is clean:
        return 0.0
    return float((clean.exp() * (clean - other)).sum(dtype=torch.float64))
