"""Every figure of an index against the same computed from all activations at once, in float64."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.feature_index import FeatureIndex, open_index
from services.contracts.feature_card import FeatureCard, FeatureContext
from services.contracts.features import PromotedToken
from services.saes.index.corpus import IndexCorpus
from services.saes.sae import Sae
from tests.services.saes.index.conftest import D_SAE, WORDS, K, TableRunner, make_saes

BANDS = ("upper", "middle", "lower")


@dataclass
class Truth:
    """All features on all tokens of the corpus, by hand: zero where a token is over the norm threshold."""

    sae: Sae
    features: Tensor
    counted: Tensor


@pytest.fixture(scope="module", params=["topk", "relu"])
def sae_id(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def truth(sae_id: str, corpus: IndexCorpus) -> Truth:
    sae, runner = make_saes()[sae_id], TableRunner()
    rows = [corpus.tokens[start:end].tolist() for start, end in corpus.rows]
    x = torch.cat([runner.activations([row])[0][sae_id] for row in rows]).double()
    pre = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    if sae_id == "topk":
        pre = torch.where(pre >= pre.sort(dim=1, descending=True).values[:, K - 1 : K], pre, 0.0)
    assert sae.norm_threshold is not None
    counted = x.norm(dim=1) <= sae.norm_threshold
    assert 0.02 < float((~counted).double().mean()) < 0.3
    return Truth(sae, pre.clamp(min=0) * counted[:, None], counted)


@pytest.fixture(scope="module")
def index(sae_id: str, indexes: dict[str, Path]) -> Iterator[FeatureIndex]:
    with closing(open_index(indexes[sae_id])) as index:
        yield index


@pytest.fixture(scope="module")
def cards(index: FeatureIndex) -> list[FeatureCard]:
    return [index.card(feature) for feature in range(D_SAE)]


def test_the_facts_say_over_what_the_features_were_indexed(
    index: FeatureIndex, corpus: IndexCorpus, truth: Truth, sae_id: str
) -> None:
    facts = index.facts
    assert (facts.tokens, facts.documents) == (len(corpus.tokens), 60)
    assert facts.tokens_over_norm == int((~truth.counted).sum())
    assert (facts.corpus_sha256, facts.sae_sha256) == (corpus.sha256, sae_id)
    assert facts.corpus == "bridges (30 documents): public domain; rivers (30 documents): public domain"


def test_densities_largest_and_mean_activations_are_those_of_all_tokens_within_the_threshold(
    cards: list[FeatureCard], truth: Truth, sae_id: str
) -> None:
    for card in cards:
        fired = truth.features[:, card.index]
        fired = fired[fired > 0]
        assert (card.sae, card.active_tokens) == (sae_id, len(fired))
        assert card.density == pytest.approx(len(fired) / int(truth.counted.sum()))
        assert card.max_activation == pytest.approx(float(fired.max()) if len(fired) else 0, rel=1e-5, abs=1e-9)
        assert card.mean_activation == pytest.approx(float(fired.mean()) if len(fired) else 0, rel=1e-5, abs=1e-9)


def test_histograms_count_every_firing_in_its_bin(cards: list[FeatureCard], truth: Truth) -> None:
    for card in cards:
        column = truth.features[:, card.index].numpy()
        fired = column[column > 0]
        if not len(fired):
            assert (card.histogram.edges, card.histogram.counts) == ((0.0,), ())
            continue
        edges = np.linspace(0, float(fired.max()), 21)
        np.testing.assert_allclose(card.histogram.edges, edges, rtol=1e-5)
        near_an_edge = sum(int((np.abs(fired - edge) < 1e-5 * edges[-1]).sum()) for edge in edges[1:-1])
        differing = np.abs(np.array(card.histogram.counts) - np.histogram(fired, edges)[0]).sum()
        assert sum(card.histogram.counts) == len(fired)
        assert differing <= 2 * near_an_edge


def place_of(context: FeatureContext, corpus: IndexCorpus) -> int:
    """Where a context's first token is in the corpus: found by its text within its document's row."""
    document = corpus.names.index(context.document)
    begin, end = int(corpus.starts[document]), int(corpus.ends[document])
    words = [WORDS[token] for token in corpus.tokens[begin:end].tolist()]
    length = len(context.tokens)
    (*places,) = (place for place in range(len(words)) if tuple(words[place : place + length]) == context.tokens)
    assert corpus.sources[document] == context.source
    return begin + places[0] if len(places) == 1 else -1


def test_every_context_is_a_window_of_one_row_with_the_activations_of_its_tokens(
    cards: list[FeatureCard], corpus: IndexCorpus, truth: Truth
) -> None:
    seen = 0
    for card in cards:
        for context in card.contexts:
            start = place_of(context, corpus)
            if start < 0:
                continue
            seen += 1
            end, peak = start + len(context.tokens), start + context.position
            row = next((first, last) for first, last in corpus.rows if first <= peak < last)
            assert (start, end) == (max(row[0], peak - 12), min(row[1], peak + 13))
            expected = truth.features[start:end, card.index].numpy()
            np.testing.assert_allclose(context.activations, expected, rtol=1e-3, atol=1e-6 * card.max_activation)
            assert context.activation == context.activations[context.position] > 0
    assert seen > 300, "a context whose words are twice in its document is passed over"


def test_the_top_contexts_are_the_strongest_firings_of_twenty_documents(
    cards: list[FeatureCard], corpus: IndexCorpus, truth: Truth
) -> None:
    for card in cards:
        top = [context for context in card.contexts if context.band == "top"]
        by_document = [
            float(truth.features[start:end, card.index].max())
            for start, end in zip(corpus.starts, corpus.ends, strict=True)
        ]
        expected = sorted((value for value in by_document if value > 0), reverse=True)[:20]
        np.testing.assert_allclose([context.activation for context in top], expected, rtol=1e-3)
        for context in top:
            assert context.activation == pytest.approx(by_document[corpus.names.index(context.document)], rel=1e-3)


def test_the_bands_are_thirds_of_the_firings_in_documents_not_shown_before(
    cards: list[FeatureCard], truth: Truth
) -> None:
    for card in cards:
        documents = [context.document for context in card.contexts]
        assert len(set(documents)) == len(documents)
        fired = truth.features[:, card.index]
        thirds = np.array_split(fired[fired > 0].sort(descending=True).values.numpy(), 3)
        for band, third in zip(BANDS, thirds, strict=True):
            chosen = [context for context in card.contexts if context.band == band]
            assert len(chosen) <= 3
            for context in chosen:
                assert third[-1] * 0.999 <= context.activation <= third[0] * 1.001
        if len({context.document for context in card.contexts}) < 20:
            assert {context.band for context in card.contexts} <= {"top"}
    assert any(sum(context.band == "lower" for context in card.contexts) == 3 for card in cards)


def test_promoted_and_suppressed_tokens_are_the_ends_of_what_the_decoder_row_does_to_the_logits(
    cards: list[FeatureCard], truth: Truth
) -> None:
    logits = truth.sae.W_dec.double() @ TableRunner().unembedding.double()
    for card in cards:
        order = logits[card.index].argsort(descending=True).tolist()
        for tokens, ids in ((card.promoted, order[:10]), (card.suppressed, order[::-1][:10])):
            assert tokens == tuple(
                PromotedToken(token_id=token, token=WORDS[token], logit=shown.logit)
                for token, shown in zip(ids, tokens, strict=True)
            )
            np.testing.assert_allclose([token.logit for token in tokens], logits[card.index, ids], rtol=1e-5, atol=1e-6)


def test_the_nearest_features_are_those_of_the_largest_cosines_and_jaccard_indices(
    cards: list[FeatureCard], truth: Truth
) -> None:
    directions = torch.nn.functional.normalize(truth.sae.W_dec.double(), dim=1)
    fired = (truth.features > 0).double()
    both = fired.T @ fired
    either = fired.sum(0)[:, None] + fired.sum(0) - both
    jaccard = torch.where(either > 0, both / either, 0.0)
    for figures, name in ((directions @ directions.T, "nearest_by_decoder"), (jaccard, "nearest_by_coactivation")):
        figures.fill_diagonal_(-1.0)
        for card in cards:
            near = getattr(card, name)
            row = figures[card.index]
            expected = row.sort(descending=True).values[:10]
            expected = expected if name == "nearest_by_decoder" else expected[expected > 0]
            np.testing.assert_allclose([each.similarity for each in near], expected, atol=6e-4)
            np.testing.assert_allclose(
                [each.similarity for each in near], row[[each.index for each in near]], atol=6e-4
            )


def test_a_dead_feature_has_a_card_of_zeros_without_contexts(cards: list[FeatureCard], index: FeatureIndex) -> None:
    dead = cards[-1]
    assert (dead.density, dead.max_activation, dead.active_tokens, dead.contexts) == (0.0, 0.0, 0, ())
    assert (dead.nearest_by_coactivation, len(dead.nearest_by_decoder)) == ((), 10)
    index.check()
