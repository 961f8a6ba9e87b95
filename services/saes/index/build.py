"""From a corpus to the indexes of several SAEs of one model, in one pass of the model.

1. Run the corpus' rows through the model up to the deepest SAE's layer, a batch at a time;
2. encode each SAE's activations and write down which features fired (`firings`); note how far that is;
3. when all rows are done, describe every feature from its firings and write each SAE's file.

Killed and started again, the pass goes on after its last batch, and gives the same files.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from services.catalogue.feature_file import FORMAT_VERSION, FeatureRecord, IndexHeader
from services.catalogue.operator import CatalogueError
from services.saes.index.contexts import describe
from services.saes.index.corpus import IndexCorpus
from services.saes.index.firings import Firings, FiringsWriter
from services.saes.index.neighbours import Logits, effects, nearest_by_coactivation, nearest_by_decoder
from services.saes.index.writer import write_index
from services.saes.progress import how_far
from services.saes.sae import Sae

ROWS_AT_ONCE = 48
REPORT_S = 10.0

Tell = Callable[[str], None]


class Runner(Protocol):
    """The model, as far as an index needs it."""

    def activations(self, rows: Sequence[Sequence[int]]) -> Sequence[Mapping[str, Float[Tensor, "token d_model"]]]:
        """Per row, what each SAE reads on its tokens, by the SAE's id; a prepended BOS is left out."""

    def logits(self, sae_id: str, directions: Float[Tensor, "feature d_out"]) -> Float[Tensor, "feature vocabulary"]:
        """What one unit of each of an SAE's directions adds to the logits, through the final norm's gain."""

    def token_string(self, token: int) -> str:
        """How a token reads."""


@dataclass(frozen=True)
class Progress:
    """How far a pass is: rows run, and firings written down per SAE."""

    rows: int
    firings: Mapping[str, int]


def build_indexes(
    saes: Mapping[str, Sae], corpus: IndexCorpus, runner: Runner, *, outputs: Mapping[str, Path], work: Path, tell: Tell
) -> None:
    """Write the index of each SAE to its path in `outputs`; `work` holds what a pass has done so far, until it ends.

    Raises CatalogueError when `work` is of another pass, or no token is within an SAE's norm threshold.
    """
    work.mkdir(parents=True, exist_ok=True)
    _record_firings(saes, corpus, runner, work, tell)
    for sae_id, sae in saes.items():
        started = time.monotonic()
        firings, output = Firings(work / sae_id, sae.d_sae), outputs[sae_id]
        header = _header(sae_id, sae, corpus, firings.tokens_over_norm)
        output.parent.mkdir(parents=True, exist_ok=True)
        logits = partial(runner.logits, sae_id)
        write_index(output, header, corpus, _records(sae, corpus, firings, logits), runner.token_string)
        tell(f"{sae_id}: {output} in {time.monotonic() - started:.0f} s")
    shutil.rmtree(work)


def fingerprint(saes: Mapping[str, Sae], corpus: IndexCorpus, model_sha256: str) -> str:
    """Names a pass: the same for the same SAEs, tokens, rows and model."""
    content = [FORMAT_VERSION, ROWS_AT_ONCE, model_sha256, corpus.sha256, corpus.width, len(corpus.tokens)]
    content += [[sae_id, sae.sha256, sae.config_sha256] for sae_id, sae in saes.items()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _record_firings(saes: Mapping[str, Sae], corpus: IndexCorpus, runner: Runner, work: Path, tell: Tell) -> None:
    progress = _read_progress(work, saes)
    rows = corpus.rows
    tokens = rows[progress.rows - 1][1] if progress.rows else 0
    writers = {sae_id: FiringsWriter(work / sae_id, tokens, progress.firings[sae_id]) for sae_id in saes}
    started = reported = time.monotonic()
    first_token = tokens
    try:
        for done in range(progress.rows, len(rows), ROWS_AT_ONCE):
            batch = rows[done : done + ROWS_AT_ONCE]
            read = runner.activations([corpus.tokens[start:end].tolist() for start, end in batch])
            for sae_id, sae in saes.items():
                writers[sae_id].append(sae, torch.cat([row[sae_id] for row in read]))
            _write_progress(work, Progress(done + len(batch), _flushed(writers)))
            if time.monotonic() - reported > REPORT_S or done + len(batch) == len(rows):
                reported = time.monotonic()
                seconds, run = reported - started, batch[-1][1]
                speed = (run - first_token) / seconds
                far = how_far(run, len(corpus.tokens), first=first_token, seconds=seconds)
                tell(f"{done + len(batch)}/{len(rows)} rows, {speed:.0f} tokens/s, {far}")
    finally:
        for writer in writers.values():
            writer.close()


def _flushed(writers: Mapping[str, FiringsWriter]) -> dict[str, int]:
    for writer in writers.values():
        writer.flush()
    return {sae_id: writer.firings for sae_id, writer in writers.items()}


def _read_progress(work: Path, saes: Mapping[str, Sae]) -> Progress:
    path = work / "progress.json"
    if not path.exists():
        return Progress(0, dict.fromkeys(saes, 0))
    stored = json.loads(path.read_text(encoding="utf-8"))
    if set(stored["firings"]) != set(saes):
        raise CatalogueError(f"{work} holds a pass over {', '.join(stored['firings'])}: delete it to begin another")
    return Progress(stored["rows"], stored["firings"])


def _write_progress(work: Path, progress: Progress) -> None:
    partial = work / "progress.json.partial"
    partial.write_text(json.dumps({"rows": progress.rows, "firings": progress.firings}), encoding="utf-8")
    partial.rename(work / "progress.json")


def _header(sae_id: str, sae: Sae, corpus: IndexCorpus, tokens_over_norm: int) -> IndexHeader:
    if tokens_over_norm == len(corpus.tokens):
        raise CatalogueError(f"no token of the corpus is within the norm threshold of {sae_id}")
    return IndexHeader(
        features=sae.d_sae,
        tokens=len(corpus.tokens),
        tokens_over_norm=tokens_over_norm,
        documents=len(corpus.starts),
        corpus=corpus.description,
        corpus_sha256=corpus.sha256,
        sae_sha256=sae.sha256,
    )


def _records(sae: Sae, corpus: IndexCorpus, firings: Firings, logits: Logits) -> Iterator[FeatureRecord]:
    moved, nearest = effects(sae, logits), nearest_by_decoder(sae)
    for feature in firings.features():
        promoted, suppressed = moved[feature.feature]
        yield describe(
            feature,
            corpus,
            promoted=promoted,
            suppressed=suppressed,
            nearest_by_decoder=nearest[feature.feature],
            nearest_by_coactivation=nearest_by_coactivation(firings.together_with(feature)),
        )
