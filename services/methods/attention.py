"""Attention patterns, and scores of every head on text and on repeated random tokens.

1. run each prompt and each random sequence once, and take every head's pattern and the residual stream after layer 0;
2. score each pattern against where a previous-token, duplicate-token or induction head would look (`head_scores`);
3. put that residual stream through each head's OV circuit and the unembedding: does the token come back?
4. average over prompts; patterns are given back for the chosen heads alone.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from services.catalogue.costs.attention import PATTERN_BYTES, copying_token_layers, layer_groups, pattern_bytes
from services.contracts.attention import (
    AttentionHead,
    AttentionResult,
    AttentionSpec,
    HeadScores,
    PromptAttention,
    ReadHead,
)
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor, Statistic
from services.engine.outcome import Outcome
from services.engine.row import Capture, Row, Site
from services.engine.weights import Weights
from services.methods.context import MethodContext
from services.methods.head_scores import attention_score, copied, masks
from services.methods.statistics import estimate

VERSION = "1"

AFTER_FIRST_LAYER = Capture(Site(SiteName.RESID_POST, 0))


@dataclass
class Read:
    """What is kept of one sequence: the chosen heads' patterns, and by kind of head the scores of every layer."""

    patterns: dict[AttentionHead, Float[Tensor, "query key"]] = field(default_factory=dict)
    scores: dict[str, list[Float[Tensor, " head"]]] = field(default_factory=lambda: defaultdict(list))


def run(spec: AttentionSpec, context: MethodContext) -> AttentionResult:
    """Read every sequence. Positions count from 0; a pattern's rows are queries."""
    sequences = _random_sequences(spec, context)
    reader = Reader(context, context.weights(), spec.scores)
    read = reader.read([prompt.ids for prompt in context.inputs.prompts], spec.patterns)
    drawn = reader.read(sequences, ())
    return AttentionResult(
        heads=tuple(ReadHead(layer=chosen.layer, head=chosen.head) for chosen in spec.patterns),
        prompts=tuple(
            PromptAttention(tokens=prompt, patterns=_stacked(of_prompt, spec.patterns))
            for prompt, of_prompt in zip(context.inputs.prompts, read, strict=True)
        ),
        scores=_averaged(read) if spec.scores and read else None,
        random_scores=_averaged(drawn) if drawn else None,
        random_sequences=tuple(sequences) or None,
        warnings=tuple(context.warnings),
        provenance=context.provenance("attention", VERSION, spec.random_tokens.seed if spec.random_tokens else None),
        usage=context.usage(),
    )


def _random_sequences(spec: AttentionSpec, context: MethodContext) -> list[tuple[int, ...]]:
    """[BOS,] n different tokens, and the same n again; BOS is never among them."""
    facts, drawn = context.model.facts, spec.random_tokens
    if drawn is None:
        return []
    start = (facts.bos_token_id,) if spec.begins_with_bos(facts) and facts.bos_token_id is not None else ()
    generator = torch.Generator().manual_seed(drawn.seed)
    sequences = []
    for _ in range(drawn.sequences):
        shuffled = torch.randperm(facts.vocabulary, generator=generator).tolist()
        half = [token for token in shuffled if token != facts.bos_token_id][: drawn.length]
        sequences.append((*start, *half, *half))
    return sequences


@dataclass(frozen=True)
class Reader:
    """Reads sequences, holding at most `held_bytes` of patterns at once (one layer's at least)."""

    context: MethodContext
    weights: Weights
    scores: bool
    held_bytes: int = PATTERN_BYTES

    def read(self, sequences: Sequence[tuple[int, ...]], chosen: Sequence[AttentionHead]) -> list[Read]:
        """Run every sequence, some layers of it at a time where its patterns are large."""
        read = [Read() for _ in sequences]
        for batch in self._batches(sequences):
            rows = [Row(sequences[index], captures=self._captures(layers, chosen)) for index, layers in batch]
            outcomes = self.context.run(rows)
            for (index, layers), outcome in zip(batch, outcomes, strict=True):
                if self.scores:
                    self._score_patterns(read[index], sequences[index], layers, outcome)
                for head in chosen:
                    if head.layer in layers:
                        read[index].patterns[head] = self._pattern(outcome, head)
            beginnings = [
                (read[index], sequences[index], outcome.captures[AFTER_FIRST_LAYER])
                for (index, _), outcome in zip(batch, outcomes, strict=True)
                if AFTER_FIRST_LAYER in outcome.captures
            ]
            if beginnings:
                self._score_copying(beginnings)
        return read

    def _batches(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, range]]]:
        """Sequences and the layers whose patterns to take of them: together no more than may be held at once."""
        batch: list[tuple[int, range]] = []
        held = 0
        for index, tokens in enumerate(sequences):
            groups = list(layer_groups(len(tokens), self.context.model.facts, self.held_bytes))
            for layers in groups if self.scores else [range(self.context.model.facts.layers)]:
                nbytes = pattern_bytes(len(tokens), self.context.model.facts) * len(layers)
                if batch and (len(groups) > 1 or held + nbytes > self.held_bytes):
                    yield batch
                    batch, held = [], 0
                batch.append((index, layers))
                held += nbytes
        if batch:
            yield batch

    def _captures(self, layers: range, chosen: Sequence[AttentionHead]) -> tuple[Capture, ...]:
        if not self.scores:
            return tuple(dict.fromkeys(_capture(head) for head in chosen))
        patterns = [Capture(Site(SiteName.PATTERN, layer)) for layer in layers]
        return (*patterns, *([AFTER_FIRST_LAYER] if 0 in layers else []))

    def _pattern(self, outcome: Outcome, head: AttentionHead) -> Float[Tensor, "query key"]:
        if self.scores:
            return outcome.captures[Capture(Site(SiteName.PATTERN, head.layer))][:, head.head].clone()
        return outcome.captures[_capture(head)]

    def _score_patterns(self, read: Read, tokens: tuple[int, ...], layers: range, outcome: Outcome) -> None:
        wanted = masks(tokens, self._first(tokens))
        for layer in layers:
            pattern = outcome.captures[Capture(Site(SiteName.PATTERN, layer))]
            for kind, mask in wanted.items():
                read.scores[kind].append(attention_score(pattern, mask))

    def _score_copying(
        self, beginnings: Sequence[tuple[Read, tuple[int, ...], Float[Tensor, "_position d_model"]]]
    ) -> None:
        """All sequences of a batch together, so that the unembedding is read as seldom as possible."""
        facts = self.context.model.facts
        kept = [slice(self._first(tokens), None) for _, tokens, _ in beginnings]
        ids = [torch.tensor(tokens)[own] for own, (_, tokens, _) in zip(kept, beginnings, strict=True)]
        residual = torch.cat([stream[own] for own, (_, _, stream) in zip(kept, beginnings, strict=True)])
        lengths = [len(own) for own in ids]
        tokens_read = sum(len(tokens) for _, tokens, _ in beginnings)
        for layer in range(facts.layers):
            started = time.monotonic()
            by_token = copied(torch.cat(ids), residual, layer, self.weights)
            for (read, _, _), of_sequence in zip(beginnings, torch.split(by_token.double(), lengths), strict=True):
                read.scores["copying"].append(of_sequence.mean(dim=0))
            work = copying_token_layers(tokens_read, facts) // facts.layers
            self.context.charge(work, time.monotonic() - started)

    def _first(self, tokens: tuple[int, ...]) -> int:
        """Where a sequence begins, behind its BOS token."""
        return 1 if tokens[0] == self.context.model.facts.bos_token_id else 0


def _capture(head: AttentionHead) -> Capture:
    return Capture(Site(SiteName.PATTERN, head.layer, head.head))


def _stacked(read: Read, chosen: Sequence[AttentionHead]) -> InlineTensor | None:
    if not chosen:
        return None
    return InlineTensor.of(torch.stack([read.patterns[head] for head in chosen]), ("head", "query", "key"))


def _averaged(read: Sequence[Read]) -> HeadScores:
    def mean(kind: str) -> InlineTensor | Statistic:
        """Over the sequences on which the score is defined: for all heads, or for none."""
        tables = np.stack([torch.stack(of_sequence.scores[kind]).numpy() for of_sequence in read])
        defined = tables[~np.isnan(tables).all(axis=(1, 2))]
        return estimate(defined if len(defined) else tables[:1], ("layer", "head"))

    return HeadScores(
        previous_token=mean("previous_token"),
        duplicate_token=mean("duplicate_token"),
        induction=mean("induction"),
        copying=mean("copying"),
    )
