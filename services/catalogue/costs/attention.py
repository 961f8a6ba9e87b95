"""What `attention` costs: every sequence once, and for the copying scores about as much again.

Patterns are large: those of a long prompt are taken some layers at a time, each time from the first layer on.
"""

from collections.abc import Iterator

from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.contracts.attention import AttentionSpec
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts

PATTERN_BYTES = 256 * 2**20
"""Patterns held at once."""

ID_BYTES = 7
"""One token id, as JSON."""


def attention_cost(spec: AttentionSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    lengths = [len(prompt.ids) for prompt in inputs.prompts]
    patterns = len(spec.patterns) * sum(length**2 for length in lengths)
    if not spec.scores:
        depth = 1 + max((chosen.layer for chosen in spec.patterns), default=0)
        return Cost(sum(lengths) * depth, patterns * FLOAT_BYTES)
    drawn = spec.random_tokens
    output = (patterns + 4 * 2 * 2 * model.layers * model.heads) * FLOAT_BYTES
    if drawn is not None:
        random = [2 * drawn.length + spec.begins_with_bos(model)] * drawn.sequences
        lengths += random
        output += sum(random) * ID_BYTES
    work = sum(length * sum(group.stop for group in layer_groups(length, model)) for length in lengths)
    return Cost(work + copying_token_layers(sum(lengths), model), output)


def copying_token_layers(tokens: int, model: ModelFacts) -> int:
    """Every token through every head: values, output and a first look at the logits are about one block's work."""
    return tokens * model.layers


def layer_groups(length: int, model: ModelFacts, held_bytes: int = PATTERN_BYTES) -> Iterator[range]:
    """The layers whose patterns are held at once for one prompt."""
    at_once = max(1, held_bytes // pattern_bytes(length, model))
    for first in range(0, model.layers, at_once):
        yield range(first, min(first + at_once, model.layers))


def pattern_bytes(length: int, model: ModelFacts) -> int:
    """The patterns of one layer's heads."""
    return model.heads * length**2 * FLOAT_BYTES
