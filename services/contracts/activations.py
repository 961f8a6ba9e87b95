"""`activations`: what a model computes at named sites, as it is."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract, Head, Layer, Position
from services.contracts.errors import Violation
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts
from services.contracts.place import Place
from services.contracts.prompt import Prompt
from services.contracts.result import PromptTokens, Result
from services.contracts.site import HEAD_SITES, KV_SITES, SiteName
from services.contracts.spec import Asked, Spec
from services.contracts.tensor import Tensor


class ActivationsSpec(Spec):
    """The activations of every prompt at every one of `sites`, of unpatched runs.

    A place without positions gives all of a prompt's; `GET …/result` as safetensors or npz has them by name,
    `prompts.0.activations.1` for the first prompt's second site.
    """

    kind: Literal["activations"]
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=1_000)]
    sites: Annotated[tuple[Place, ...], Field(min_length=1, max_length=256)]

    def asked(self) -> Asked:
        return Asked(prompts=self.prompts)

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """Sites, layers and heads that this model lacks."""
        for index, place in enumerate(self.sites):
            yield from place.violations(facts, f"/sites/{index}", write=False)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Positions that some prompt lacks."""
        lengths = tuple(len(prompt.ids) for prompt in inputs.prompts)
        for index, place in enumerate(self.sites):
            yield from place.position_violations(lengths, f"/sites/{index}")


def activation_dims(site: SiteName, head: int | None) -> tuple[str, ...]:
    """The names of an activation's axes. Of attention sites the first is the query's position, `key` the key's."""
    first = "query" if site in (SiteName.ATTN_SCORES, SiteName.PATTERN) else "position"
    heads = () if head is not None or site not in HEAD_SITES else ("kv_head" if site in KV_SITES else "head",)
    match site:
        case SiteName.ATTN_SCORES | SiteName.PATTERN:
            last = "key"
        case SiteName.Q | SiteName.K | SiteName.V | SiteName.Z:
            last = "d_head"
        case SiteName.MLP_POST:
            last = "d_mlp"
        case _:
            last = "d_model"
    return (first, *heads, last)


class ReadPlace(Contract):
    """A place as it was read: a hook name resolved to its site and layer; null positions are all."""

    site: SiteName
    layer: Layer | None
    head: Head | None
    positions: tuple[Position, ...] | None


class PromptActivations(Contract):
    """One tensor per site, in the order of `sites`.

    Axes: [position, d_model], [position, d_mlp] for `mlp_post`, [position, head (or kv_head), d_head] for q, k, v and
    z, [query, head, key] for `attn_scores` and `pattern`; no head axis where the place names a head. Masked scores are
    null. q and k are read before rotary embeddings.
    """

    tokens: PromptTokens
    activations: tuple[Tensor, ...]


class ActivationsResult(Result):
    kind: Literal["activations"] = "activations"
    sites: tuple[ReadPlace, ...]
    prompts: tuple[PromptActivations, ...]
