"""How a model begins a forward pass: the first residual stream, and the arguments that it hands to every block.

The model's own forward runs with its blocks stood in for, so nothing about the family has to be known: embeddings,
masks, rotary angles and position ids come out as the model itself makes them. They are functions of the absolute
position alone, so a batch that starts in the middle of its rows takes the entries of its own positions.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from services.models.load import LoadedModel

_STREAM = "hidden_states"


class UnknownFamily(Exception):
    """The model cannot be driven block by block: it hands its blocks something whose positions are not known."""


class _Opened(Exception):
    """Ends a forward pass once the last block has been called."""


@dataclass(frozen=True, eq=False)
class BlockCall:
    """The arguments of one block but the residual stream, by name, over all positions."""

    by_position: Mapping[str, Any]
    fixed: Mapping[str, Any]
    cache_name: str

    def at(self, positions: Int[Tensor, "#row slot"], keys: int, cache: Any, memo: dict[int, Any]) -> dict[str, Any]:
        """The arguments for `positions`, attending to the first `keys` positions; blocks share what they shared."""
        for value in self.by_position.values():
            if id(value) not in memo:
                memo[id(value)] = _taken(value, positions, keys)
        taken = {name: memo[id(value)] for name, value in self.by_position.items()}
        return {**self.fixed, **taken, self.cache_name: cache}


@dataclass(frozen=True, eq=False)
class Opening:
    residual: Float[Tensor, "row position d_model"]
    calls: Sequence[BlockCall]


class Openings:
    """Opens forward passes of one model.

    Raises:
        UnknownFamily: from the constructor or from `open`.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._module = model.bridge.original_model
        self._blocks = list(model.bridge.blocks)
        self._device = model.device
        self._outputs = self._sample_outputs()

    @torch.no_grad()
    def open(self, tokens: Int[Tensor, "row slot"], positions: Int[Tensor, "row slot"] | None = None) -> Opening:
        """Embed `tokens` and collect what every block is called with.

        With `positions` other than 0, 1, … the residual stream is right, and the calls mean nothing.
        """
        placed = {} if positions is None else {"position_ids": positions}
        cache = DynamicCache()
        called: list[dict[str, Any]] = []
        try:
            with self._stood_in_for(called):
                self._module(tokens, past_key_values=cache, use_cache=True, **placed)
        except _Opened:
            return Opening(called[0][_STREAM], [_block_call(arguments, cache) for arguments in called])
        raise UnknownFamily("the model does not call its blocks one after another")

    @cached_property
    def places_tokens(self) -> bool:
        """Whether a token can be embedded at any position without those before it."""
        if "position_ids" not in inspect.signature(self._module.forward).parameters:
            return False
        tokens = torch.arange(4, device=self._device)
        alone = self.open(tokens[:, None], tokens[:, None]).residual[:, 0]
        return torch.allclose(alone, self.open(tokens[None]).residual[0], rtol=1e-4, atol=1e-4)

    @contextmanager
    def _stood_in_for(self, called: list[dict[str, Any]]) -> Iterator[None]:
        """Every block only notes its arguments and passes the stream on; the last one ends the pass."""

        def stand_in(index: int, *given: Any, **named: Any) -> Any:
            names = inspect.signature(self._blocks[index].original_component.forward).parameters
            called.append({**dict(zip(names, given, strict=False)), **named})
            if index == len(self._blocks) - 1:
                raise _Opened
            stream = called[-1][_STREAM]
            rest = self._outputs[index]
            return stream if rest is None else (stream, *rest)

        for index, block in enumerate(self._blocks):
            vars(block)["forward"] = partial(stand_in, index)  # setattr would reach the wrapped module
        try:
            yield
        finally:
            for block in self._blocks:
                del vars(block)["forward"]

    @torch.no_grad()
    def _sample_outputs(self) -> list[tuple[Any, ...] | None]:
        """What each block returns behind the residual stream; None when it returns the stream alone."""
        outputs: list[tuple[Any, ...] | None] = []

        def note(_block: Any, _given: Any, output: Any) -> None:
            outputs.append(output[1:] if isinstance(output, tuple) else None)

        handles = [block.register_forward_hook(note) for block in self._blocks]
        try:
            self._module(torch.zeros((1, 2), dtype=torch.long, device=self._device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        if len(outputs) != len(self._blocks):
            raise UnknownFamily("the model does not call each of its blocks once")
        return outputs


def _block_call(arguments: Mapping[str, Any], cache: DynamicCache) -> BlockCall:
    by_position, fixed, cache_name = {}, {}, None
    for name, value in arguments.items():
        if value is cache:
            cache_name = name
        elif name in _BY_POSITION and value is not None:
            by_position[name] = value
        elif isinstance(value, Tensor) and name != _STREAM:
            raise UnknownFamily(f"a block is called with {name}, whose positions are not known")
        elif name != _STREAM:
            fixed[name] = value
    if cache_name is None or "attention_mask" not in by_position:
        raise UnknownFamily("a block is called without a key-value cache or without an explicit mask")
    return BlockCall(by_position, fixed, cache_name)


def _taken(value: Any, positions: Int[Tensor, "#row slot"], keys: int) -> Any:
    """The entries of `positions`, of a mask [row, 1, query, key], angles [row, position, …] or ids [row, position]."""
    if isinstance(value, tuple):
        return tuple(_taken(part, positions, keys) for part in value)
    if value.ndim == 4:
        return value[0, 0][positions][:, None, :, :keys]
    return value[0][positions]


_BY_POSITION = ("attention_mask", "position_embeddings", "position_ids")
