"""From the final residual stream to logits: final norm, unembedding, the family's scale and soft cap.

Only what a readout names is unembedded. Checked against whole forward passes before it is relied on.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from services.engine.opening import UnknownFamily
from services.models.load import LoadedModel


class Tail:
    def __init__(self, model: LoadedModel) -> None:
        config: Any = model.bridge.original_model.config
        if not hasattr(model.bridge, "ln_final"):
            raise UnknownFamily("the model has no final norm of its own")
        self._norm: Any = model.bridge.ln_final.original_component
        self._unembed: Any = model.bridge.unembed.original_component
        self._divisor = float(getattr(config, "logits_scaling", 1.0))
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)

    def logits(
        self, residual: Float[Tensor, "*batch d_model"], tokens: tuple[int, ...] | None = None
    ) -> Float[Tensor, "*batch token"]:
        """Logits of `tokens`, or of the whole vocabulary."""
        weight, bias = self._unembed.weight, self._unembed.bias
        if tokens is not None:
            weight, bias = weight[list(tokens)], None if bias is None else bias[list(tokens)]
        logits = torch.nn.functional.linear(self._norm(residual), weight, bias) / self._divisor
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap
