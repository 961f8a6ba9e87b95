"""What a row yields."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from services.engine.readout import Reading, TopTokens
from services.engine.row import Capture

Execution = Literal["branched", "whole"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A row's reading, captures and gradients, float32 on the CPU.

    A capture's first axis is its positions in the order asked for; the site's own axes follow (see `row`). A gradient
    has those of the capture that it was asked for by.
    `execution` says how the row was run: grafted onto its base run, or as a whole forward pass.
    """

    reading: Reading | None
    captures: Mapping[Capture, Float[Tensor, "_position ..."]]
    execution: Execution
    gradients: Mapping[Capture, Float[Tensor, "_position ..."]] = field(default_factory=dict)

    def values(self) -> Float[Tensor, "..."]:
        """The reading of a readout that yields numbers."""
        if self.reading is None or isinstance(self.reading, TopTokens):
            raise TypeError("this row's readout does not yield plain numbers")
        return self.reading
