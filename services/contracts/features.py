"""`features`: which features of a sparse autoencoder fire on prompts, and how well they rebuild the activations."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract
from services.contracts.errors import ErrorCode, Violation
from services.contracts.feature_contrast import MAX_PROMPTS, MAX_SCORES, Contrast, FeatureContrast
from services.contracts.feature_search import FeatureSearch, Mark, search_violations
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts
from services.contracts.prompt import Prompt
from services.contracts.result import PromptTokens, Result
from services.contracts.sae import SaeFacts, SaeOutput
from services.contracts.spec import Asked, Spec
from services.contracts.tensor import Tensor

FeatureIndex = Annotated[int, Field(ge=0, le=10_000_000)]


class FeaturesSpec(Spec):
    """The `top_k` features per token and over each prompt; with `features`, the activations of just those.

    With `contrast` or `search`, the `top_k` features over all prompts that tell two sets of them, or the tokens marked,
    apart; prompts are then not reported one by one.
    """

    kind: Literal["features"]
    sae: CatalogueId
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=MAX_PROMPTS)]
    top_k: Annotated[int, Field(ge=1, le=100)] = 10
    features: Annotated[tuple[FeatureIndex, ...] | None, Field(min_length=1, max_length=1_000)] = None
    per_token: Annotated[bool, Field(description="Also list the strongest features of every token.")] = True
    reconstruction: Annotated[
        bool | None,
        Field(description="Whether to decode, which takes every feature; null: unless `features` names some."),
    ] = None
    promoted_logits: Annotated[
        int, Field(ge=0, le=50, description="How many promoted and suppressed tokens to list per feature; 0 for none.")
    ] = 5
    contrast: Annotated[Contrast | None, Field(description="Which features tell `prompts` from other prompts.")] = None
    search: Annotated[
        tuple[Mark, ...] | None,
        Field(
            min_length=1, max_length=1_000, description="Which features fire on the tokens marked and not on others."
        ),
    ] = None

    def asked(self) -> Asked:
        baseline = self.contrast.baseline if self.contrast else ()
        references = {f"/contrast/baseline/{index}": prompt for index, prompt in enumerate(baseline)}
        return Asked(prompts=self.prompts, references=references)

    def compares(self) -> bool:
        """Whether it is about all prompts together, by contrast or search."""
        return self.contrast is not None or self.search is not None

    def reconstructs(self) -> bool:
        """Whether every feature is needed, to measure what the SAE rebuilds."""
        if self.reconstruction is None:
            return self.features is None and not self.compares()
        return self.reconstruction

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """Two questions at once, and marks or sets that no model could serve."""
        del facts
        if self.contrast is not None and self.search is not None:
            message = "a contrast and a search are two questions: send two jobs"
            yield Violation("/search", ErrorCode.INVALID_REQUEST, message)
        if self.reconstruction and self.compares():
            message = "prompts are not reported one by one here, so there is no reconstruction: leave it out"
            yield Violation("/reconstruction", ErrorCode.INVALID_REQUEST, message)
        if self.contrast is not None:
            yield from self.contrast.violations(len(self.prompts))
        for index, mark in enumerate(self.search or ()):
            yield from mark.violations(len(self.prompts), f"/search/{index}")

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Marks that name nothing in these prompts."""
        marks = self.search or ()
        if marks and not any(True for mark in marks for _ in mark.violations(len(self.prompts), "")):
            yield from search_violations(marks, inputs.prompts)

    def sae_id(self) -> CatalogueId | None:
        return self.sae

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        """Features that it does not have; more features than can be contrasted over so many prompts."""
        for index, feature in enumerate(self.features or ()):
            if feature >= sae.features:
                message = f"feature {feature} does not exist: {sae.id} has features 0..{sae.features - 1}"
                yield Violation(f"/features/{index}", ErrorCode.UNKNOWN_FEATURE, message)
        if self.contrast is not None:
            prompts, features = (
                len(self.prompts) + len(self.contrast.baseline),
                len(self.features or range(sae.features)),
            )
            if prompts * features > MAX_SCORES:
                message = (
                    f"{prompts} prompts and {features} features are {prompts * features} scores, and a contrast may "
                    f"have {MAX_SCORES}: send fewer prompts, or name `features`"
                )
                yield Violation("/prompts", ErrorCode.JOB_TOO_LARGE, message)


class ActiveFeature(Contract):
    index: int
    activation: float


class TokenFeatures(Contract):
    """The features that fire on one token, strongest first.

    `over_norm`: the activation is longer than the SAE's threshold, so the token was left out: no features.
    """

    position: int
    token: str
    over_norm: bool
    features: tuple[ActiveFeature, ...]


class PromptFeature(Contract):
    """A feature over a whole prompt: its largest activation, where, its mean, and on how many tokens it fires."""

    index: int
    max_activation: float
    max_position: int
    mean_activation: float
    active_tokens: int


class Reconstruction(Contract):
    """How well the SAE rebuilds the prompt's activations, tokens over the norm threshold left out; a transcoder, those
    at the site where it writes, its skip included.

    `explained_variance` is against the SAE's stored mean where it has one, else the prompt's own (`reference`);
    null when no token is left.
    """

    tokens: int
    mse: float | None
    explained_variance: float | None
    reference: Literal["sae_mean", "prompt_mean"]
    mean_l0: float | None


class PromptFeatures(Contract):
    """One prompt. `per_token` is empty, and `reconstruction` null, where the job did not ask for them."""

    tokens: PromptTokens
    over_norm: Annotated[
        tuple[int, ...], Field(description="Positions left out: their activations are over the SAE's norm threshold.")
    ] = ()
    per_token: tuple[TokenFeatures, ...]
    top: tuple[PromptFeature, ...]
    reconstruction: Reconstruction | None
    activations: Annotated[Tensor | None, Field(description="token × feature, for the indices asked for.")] = None


class PromotedToken(Contract):
    token_id: int
    token: str
    logit: float


PerTokenScale = Annotated[
    bool,
    Field(
        description="True for an SAE that scales each token: its directions are in units of the token's own size, "
        "which the logits of promoted and suppressed tokens leave out. Their order holds, their sizes do not."
    ),
]


class FeatureEffect(Contract):
    """The tokens whose logits the feature's decoder direction raises and lowers most, read straight through W_U.

    Logits per unit of activation, the final norm's gain applied and its scale left out; at `z` through W_O first, a
    post-norm's gain applied likewise.
    """

    index: int
    promoted: tuple[PromotedToken, ...]
    suppressed: tuple[PromotedToken, ...]


class FeaturesResult(Result):
    kind: Literal["features"] = "features"
    sae: CatalogueId
    layer: int
    site: str
    output: Annotated[SaeOutput | None, Field(description="Where a transcoder writes; null for an SAE.")] = None
    features: tuple[int, ...] | None = None
    prompts: Annotated[
        tuple[PromptFeatures, ...], Field(description="One by one; empty in a contrast and in a search.")
    ]
    contrast: FeatureContrast | None = None
    search: FeatureSearch | None = None
    effects: tuple[FeatureEffect, ...] = ()
    effects_per_token_scale: PerTokenScale = False
