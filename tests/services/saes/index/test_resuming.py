"""A pass over a corpus that is killed and started again, and a record of firings read in pieces."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from services.catalogue.operator import CatalogueError
from services.saes.index.build import ROWS_AT_ONCE, build_indexes, fingerprint
from services.saes.index.corpus import IndexCorpus
from services.saes.index.firings import Bounds, Firings, FiringsWriter
from services.saes.sae import Sae
from tests.services.saes.index.conftest import D_SAE, TableRunner, make_saes


def build(
    corpus: IndexCorpus, runner: TableRunner, root: Path, saes: Mapping[str, Sae] | None = None
) -> dict[str, bytes]:
    saes = saes or make_saes()
    outputs = {sae_id: root / sae_id / "features.sqlite" for sae_id in saes}
    build_indexes(saes, corpus, runner, outputs=outputs, work=root / "work", tell=lambda _: None)
    return {sae_id: path.read_bytes() for sae_id, path in outputs.items()}


def test_a_pass_that_was_killed_goes_on_and_gives_the_same_files(
    corpus: IndexCorpus, indexes: Mapping[str, Path], tmp_path: Path
) -> None:
    killed = TableRunner(breaks_after=1)
    with pytest.raises(KeyboardInterrupt):
        build(corpus, killed, tmp_path)
    assert not any(tmp_path.glob("*/*.sqlite"))
    for record in tmp_path.glob("work/*/*"):
        with record.open("ab") as file:
            file.write(b"what a batch left that was not finished")
    resumed = TableRunner()
    found = build(corpus, resumed, tmp_path)
    assert found == {sae_id: path.read_bytes() for sae_id, path in indexes.items()}
    assert killed.batches + resumed.batches == [ROWS_AT_ONCE, len(corpus.rows) - ROWS_AT_ONCE], "no row ran twice"
    assert not (tmp_path / "work").exists()


def test_a_pass_over_other_saes_is_not_gone_on_with(corpus: IndexCorpus, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(corpus, TableRunner(breaks_after=1), tmp_path)
    with pytest.raises(CatalogueError, match="delete it to begin another"):
        build(corpus, TableRunner(), tmp_path, {"topk": make_saes()["topk"]})


def test_a_pass_is_named_by_its_model_its_saes_and_its_corpus(corpus: IndexCorpus) -> None:
    saes = make_saes()
    name = fingerprint(saes, corpus, "model")
    assert name == fingerprint(make_saes(), corpus, "model")
    assert name != fingerprint(saes, corpus, "another model")
    assert name != fingerprint({"topk": saes["topk"]}, corpus, "model")


def test_a_corpus_without_a_token_within_the_threshold_is_refused(corpus: IndexCorpus, tmp_path: Path) -> None:
    sae = make_saes()["topk"]
    strict = type(sae)(**{**vars(sae), "norm_threshold": 1e-6})
    with pytest.raises(CatalogueError, match="no token of the corpus is within the norm threshold of topk"):
        build(corpus, TableRunner(), tmp_path, {"topk": strict})


def recorded(corpus: IndexCorpus, folder: Path) -> Firings:
    writer = FiringsWriter(folder, 0, 0)
    for start, end in corpus.rows:
        writer.append(make_saes()["relu"], TableRunner().activations([corpus.tokens[start:end].tolist()])[0]["relu"])
    writer.close()
    return Firings(folder, D_SAE)


def test_firings_read_in_small_pieces_are_the_same(corpus: IndexCorpus, tmp_path: Path) -> None:
    whole = recorded(corpus, tmp_path)
    pieces = Firings(tmp_path, D_SAE, Bounds(scanned=100, sorted=500))
    features = 0
    for one, other in zip(whole.features(), pieces.features(), strict=True):
        assert one.feature == other.feature == features
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.values, other.values)
        assert (np.diff(one.tokens) > 0).all()
        features += 1
    assert features == D_SAE


def test_evenly_spaced_firings_stand_for_all_of_a_feature_that_fires_often(corpus: IndexCorpus, tmp_path: Path) -> None:
    whole = recorded(corpus, tmp_path)
    often = max(whole.features(), key=lambda firings: len(firings.tokens))
    exact = whole.together_with(often)
    estimated = Firings(tmp_path, D_SAE, Bounds(coactive=2_000)).together_with(often)
    assert exact.max() > 0.2
    assert not np.array_equal(exact, estimated)
    np.testing.assert_allclose(estimated, exact, atol=0.06)
