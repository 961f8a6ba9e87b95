"""`sae_evaluation`: how well an SAE rebuilds activations on given text, and what the model loses when it does."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import Inputs
from services.contracts.prompt import Prompt
from services.contracts.result import Result
from services.contracts.sae import SaeFacts, SaeOutput
from services.contracts.site import SiteName
from services.contracts.spec import Asked, Spec
from services.contracts.tensor import Tensor

MAX_TOKENS = 65_536
"""Of one job: the activations of all its tokens may have to be held for their mean."""

NormFilter = Literal["both", "on", "off"]


class SaeEvaluationSpec(Spec):
    """Every figure on the prompts' tokens, with the SAE's norm filter, without it, or both.

    `on`: tokens over the SAE's norm threshold are neither encoded nor changed in any run. `off`: every token is encoded
    and replaced, as in SAELens' own evaluation. An SAE without a threshold is evaluated without the filter.

    A transcoder's output takes the place of the activation where it writes, a skip included; what is measured, zeroed
    and averaged is that activation, and the norm is that of what it reads.
    """

    kind: Literal["sae_evaluation"]
    sae: CatalogueId
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=1_000)]
    norm_filter: NormFilter = "both"
    densities: Annotated[bool, Field(description="Also report how often each feature fires.")] = False

    def asked(self) -> Asked:
        return Asked(prompts=self.prompts)

    def sae_id(self) -> CatalogueId | None:
        return self.sae

    def filters(self, norm_threshold: float | None) -> tuple[bool, ...]:
        """The ways to run: True with the norm filter, False without."""
        if norm_threshold is None:
            return (False,)
        return {"both": (True, False), "on": (True,), "off": (False,)}[self.norm_filter]

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        """A norm filter alone, of an SAE that has none."""
        if self.norm_filter == "on" and sae.norm_threshold is None:
            message = f"{sae.id} has no norm threshold, so there is nothing to filter: ask for `off`"
            yield Violation("/norm_filter", ErrorCode.SAE_MISMATCH, message)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """A prompt with nothing to predict; more tokens than one job may evaluate."""
        for index, prompt in enumerate(inputs.prompts):
            if len(prompt.ids) < 2:
                message = "a prompt needs at least two tokens: the second is the first that is predicted"
                yield Violation(f"/prompts/{index}", ErrorCode.INVALID_PROMPT, message)
        if inputs.tokens() > MAX_TOKENS:
            message = f"the prompts have {inputs.tokens()} tokens, and may have {MAX_TOKENS}: send several jobs"
            yield Violation("/prompts", ErrorCode.JOB_TOO_LARGE, message)


class SplicedRun(Contract):
    """A run in which activations were replaced, in nats: mean next-token loss, and KL(clean ‖ this run) over tokens."""

    cross_entropy: float
    kl: float


class Recovered(Contract):
    """(ablated − with the SAE) / (ablated − clean): 1 is as good as the clean run, 0 no better than the ablation.

    Null where the ablation changes too little to divide by.
    """

    against_zero: float | None
    against_mean: float | None


class DensityHistogram(Contract):
    """How many features fire on which fraction of tokens; those that never do are left out.

    `edges` are counts + 1 values of log10(fraction), ascending; a bin holds its lower edge, the last one both.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class SaeFidelity(Contract):
    """The figures of one way to treat tokens over the norm threshold. What has no token to be measured on is null.

    `mse` is per dimension (SAELens' sums over them). `explained_variance` is 1 − Σ|x − x̂|² / Σ|x − mean|² with the
    result's `mean`; `explained_variance_text_mean` takes the mean of the tokens measured, as SAELens does. `l0`, `mse`
    and `cosine` are means over tokens. A feature is dead when it fires on none of them, dense on more than a tenth.
    """

    tokens: Annotated[int, Field(description="Tokens that were encoded and replaced.")]
    l0: float | None
    mse: float | None
    cosine: float | None
    explained_variance: float | None
    explained_variance_text_mean: float | None
    dead_fraction: float | None
    dense_fraction: float | None
    density_histogram: DensityHistogram
    densities: Annotated[Tensor | None, Field(description="Fraction of tokens on which each feature fires.")] = None
    sae: SplicedRun
    zero_ablation: SplicedRun
    mean_ablation: SplicedRun
    cross_entropy_recovered: Recovered
    kl_recovered: Recovered


class SaeEvaluationResult(Result):
    """Cross-entropies are over `predictions` next tokens, divergences over all `tokens`, in nats.

    `mean` is what ablates and what variance is measured from: the SAE's stored mean activation, else the mean of the
    tokens measured.
    """

    kind: Literal["sae_evaluation"] = "sae_evaluation"
    sae: CatalogueId
    layer: int
    site: SiteName
    output: Annotated[SaeOutput | None, Field(description="Where a transcoder writes; null for an SAE.")] = None
    mean: Literal["sae_mean", "text_mean"]
    prompts: int
    tokens: int
    tokens_over_norm: int
    predictions: int
    cross_entropy: Annotated[float, Field(description="Of the clean run.")]
    with_norm_filter: SaeFidelity | None
    without_norm_filter: SaeFidelity | None
