"""Where an SAE meets the model: what it reads and rebuilds, as one vector a token, whatever axes its sites have.

1. at `z` all heads stand side by side; a transcoder of an MLP may read through the norm before it;
2. what it rebuilds goes back in its site's own axes;
3. its directions reach the residual stream: at `z` through W_O.
"""

from jaxtyping import Float
from torch import Tensor

from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName
from services.engine.outcome import Outcome
from services.engine.row import Capture, Site
from services.engine.weights import Weights
from services.models.load import LoadedModel


class SaePlaces:
    """The places of one SAE in one model. `reads` and `rebuilds` are the same but for transcoders."""

    def __init__(self, facts: SaeFacts, model: LoadedModel) -> None:
        self.reads = Capture(Site(facts.site, facts.layer))
        self.rebuilds = Capture(Site(*facts.rebuilds))
        self._facts, self._model = facts, model
        self._weights = Weights(model) if facts.mlp_norm else None

    def inputs(self, outcome: Outcome) -> Float[Tensor, "token d_in"]:
        """What the SAE reads on each token of a row that captured `reads`."""
        x = outcome.captures[self.reads]
        return x.flatten(1) if self._weights is None else self._weights.mlp_input(self._facts.layer, x)

    def targets(self, outcome: Outcome) -> Float[Tensor, "token d_out"]:
        """What it is to rebuild, of a row that captured `rebuilds`."""
        return outcome.captures[self.rebuilds].flatten(1)

    def at_site(self, rebuilt: Float[Tensor, "token d_out"]) -> Float[Tensor, "token ..."]:
        """Vectors of what it rebuilds in that site's own axes."""
        if self.rebuilds.site.name is not SiteName.Z:
            return rebuilt
        return rebuilt.reshape(len(rebuilt), self._model.facts.heads, -1)

    def in_residual_stream(
        self, directions: Float[Tensor, "feature d_out"], weights: Weights
    ) -> Float[Tensor, "feature d_model"]:
        """What one unit of each decoder direction adds to the residual stream, a post-norm's scale left out."""
        if self.rebuilds.site.name is not SiteName.Z:
            return directions
        return weights.through_attention(self._facts.layer, self.at_site(directions))
