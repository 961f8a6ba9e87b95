"""The picture of each kind of result, read back from its SVG."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from services.contracts.attribution import AttributionResult
from services.contracts.errors import Conflict, ErrorCode, Refused
from services.contracts.job import JobResult
from services.figures.draw import draw
from services.figures.sheet import MEDIA_TYPES, PNG
from tests.services.figures import attributions, comparisons, features_changed, generations, samples
from tests.services.figures.reading import drawn, part, texts

LAYERS_BY_POSITIONS = samples.patching(("layer", "position"), samples.ramp(3, 8))
LAYERS_BY_HEADS = samples.patching(("layer", "head"), samples.ramp(3, 4), count=8)
BY_NAMED_POSITIONS = samples.patching(
    ("layer", "head", "position"), samples.ramp(3, 4, 2), count=8, positions=("S2", "END")
)
BY_ALL_POSITIONS = samples.patching(("layer", "head", "position"), samples.ramp(5, 6, 20), prompt=("a",) * 20)

RESULTS: dict[str, JobResult] = {
    "layers by positions": LAYERS_BY_POSITIONS,
    "layers by heads": LAYERS_BY_HEADS,
    "heads by named positions": BY_NAMED_POSITIONS,
    "heads by all positions": BY_ALL_POSITIONS,
    "embeddings by positions": samples.patching(("position",), samples.ramp(8)),
    "direct logit attribution": attributions.direct_logit(),
    "direct logit attribution of many": attributions.direct_logit(8),
    "direct logit attribution split": attributions.direct_logit(split=True),
    "direct logit attribution of many split": attributions.direct_logit(8, split=True),
    "direct logit attribution of features": attributions.direct_logit_of_features(),
    "direct logit attribution of features of many": attributions.direct_logit_of_features(8),
    "direct logit attribution over the norm": attributions.direct_logit_of_features(listed=False),
    "feature patching": features_changed.patching(),
    "feature patching of many": features_changed.patching(8),
    "feature patching by position": features_changed.patching(by_position=True),
    "feature patching without estimates": features_changed.patching(slope=False),
    "feature ablation": features_changed.ablation(),
    "feature ablation of many": features_changed.ablation(8),
    "feature ablation by position": features_changed.ablation(by_position=True),
    "features": samples.features(),
    "features asked for": samples.features(asked=True),
    "features over the prompt": samples.features(listed=False),
    "features of a contrast": comparisons.contrast(),
    "features of a search": comparisons.search(),
    "activations": samples.activations(),
    "gradient x input": attributions.gradient_x_input(),
    "integrated gradients": attributions.integrated_gradients(),
    "attribution patching": attributions.attribution_patching(),
    "attribution patching of many": attributions.attribution_patching(8, with_signs=False),
    "attention": samples.attention(),
    "attention without patterns": samples.attention(patterns=False),
    "attention without scores": samples.attention(scores=False),
    "path patching": samples.path_patching(),
    "path patching of many": samples.path_patching(8),
    "path patching by position": samples.path_patching(by_position=True),
    "edges": attributions.edges(),
    "edges of many": attributions.edges(8, scores=False),
    "sae evaluation": samples.sae_evaluation(),
    "sae evaluation without a filter": samples.sae_evaluation(filtered=False),
    "feature attribution": attributions.feature_attribution(),
    "feature attribution by position": attributions.feature_attribution(by_position=True),
    "generation": generations.generation(),
    "generation without scores": generations.generation(scored=False),
    "generation without steering": generations.generation(strengths=()),
    "direction": generations.direction(),
    "direction with prompts held out": generations.direction(held_out=True),
    "logit lens": samples.logit_lens(),
    "logit lens without a metric": samples.logit_lens(metric=False),
    "ablation": samples.ablation(),
    "ablation on many": samples.ablation(8),
    "intervention": samples.intervention(),
    "intervention on many": samples.intervention(50),
    "intervention without a metric": samples.intervention(metric=False),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_kind_has_an_svg_that_says_which_model_it_is_of(name: str) -> None:
    assert any(text.endswith(" · tiny") for text in texts(drawn(RESULTS[name])))


@pytest.mark.parametrize("name", RESULTS)
def test_every_kind_has_a_png(name: str) -> None:
    assert draw(RESULTS[name], PNG).startswith(b"\x89PNG")


def test_no_kind_and_no_method_is_left_out() -> None:
    schema = TypeAdapter(JobResult).json_schema()
    for kinds in ("AnyPatchingResult", "AnyAblationResult"):
        names = {ref["$ref"].rpartition("/")[2] for ref in schema["$defs"][kinds]["oneOf"]}
        assert names <= {type(result).__name__ for result in RESULTS.values()}
    outcomes = schema["$defs"]["AttributionResult"]["properties"]["attribution"]["discriminator"]["mapping"]
    drawn_outcomes = {result.attribution.type for result in RESULTS.values() if isinstance(result, AttributionResult)}
    assert {result.kind for result in RESULTS.values()} == set(schema["discriminator"]["mapping"])
    assert drawn_outcomes == set(outcomes)


def test_a_sweep_over_positions_has_a_label_per_layer_and_token() -> None:
    shown = texts(part(drawn(LAYERS_BY_POSITIONS), "panel-0"))
    assert {"0", "1", "2", "When", "␣Mary", "␣John/␣Mary", "layer", "position"} <= set(shown)


def test_the_colour_scale_is_centred_on_zero_and_says_what_it_measures() -> None:
    shown = texts(part(drawn(LAYERS_BY_POSITIONS), "panel-0-scale"))
    ticks = [float(text.replace("−", "-")) for text in shown if text != "normalized effect"]
    assert len(ticks) < len(shown)
    assert ticks == sorted(ticks)
    assert ticks == [-tick for tick in reversed(ticks)]


def test_a_cell_without_a_value_is_blank_and_the_picture_says_so() -> None:
    assert "grey: no value" in texts(drawn(LAYERS_BY_POSITIONS))
    whole = samples.patching(("layer", "position"), np.ones((3, 8), dtype=np.float32))
    assert "grey: no value" not in texts(drawn(whole))


def test_a_result_without_any_value_is_drawn_blank() -> None:
    assert drawn(samples.patching(("layer", "position"), np.full((3, 8), np.nan, dtype=np.float32))) is not None


def test_the_picture_of_many_pairs_is_that_of_their_mean() -> None:
    one, many = (samples.patching(("layer", "position"), samples.ramp(3, 8), count=count) for count in (1, 8))
    assert cells(many) == cells(one)
    assert "mean over 8 pairs" in texts(drawn(many))


def test_heads_at_few_positions_have_a_map_per_position() -> None:
    picture = drawn(BY_NAMED_POSITIONS)
    assert "S2" in texts(part(picture, "panel-0"))
    assert "END" in texts(part(picture, "panel-1"))


def test_heads_at_many_positions_are_the_strongest_ones() -> None:
    shown = texts(drawn(BY_ALL_POSITIONS))
    rows = [text for text in shown if text.startswith("a") and ".h" in text]
    assert "the 24 strongest of 30 heads" in shown
    assert rows[0] == "a4.h5"
    assert len(rows) == 24


def test_components_are_ranked_by_magnitude() -> None:
    shown = texts(part(drawn(attributions.direct_logit()), "panel-0"))
    assert shown[0] != "embedding"
    names = [text for text in shown if text.startswith(("a0", "a1", "a2", "m", "embedding"))]
    assert names[:2] == ["m0", "a2.h2"]


def test_direct_logit_attribution_shows_the_splits_asked_for() -> None:
    splits = {"attention by position", "MLPs by position", "m2 neuron 77", "the 1 strongest neurons"}
    assert splits <= set(texts(drawn(attributions.direct_logit(split=True))))
    assert not splits & set(texts(drawn(attributions.direct_logit())))


def test_patched_features_stand_below_the_parts_of_their_site() -> None:
    picture = drawn(features_changed.patching())
    shown = texts(part(picture, "panel-0"))
    names = [text for text in shown if text.startswith(("feature ", "all features", "error", "both"))]
    assert names == ["all features", "error ε", "both", "feature 7", "feature 42  ␣Paris", "feature 3"]
    assert "normalized effect" in shown
    assert {"named", "strongest", "exact effect on the metric"} <= set(texts(part(picture, "panel-1")))


def test_features_by_position_are_a_map_with_the_tokens() -> None:
    shown = texts(part(drawn(features_changed.patching(by_position=True)), "panel-0"))
    assert {"feature 42  ␣Paris", "error ε", "When", "␣John/␣Mary"} <= set(shown)
    assert {"feature 42", "all features", "When"} <= set(texts(drawn(features_changed.ablation(by_position=True))))


def test_a_metric_without_a_slope_is_drawn_without_estimates() -> None:
    shown = texts(drawn(features_changed.patching(slope=False)))
    assert "no first-order estimate: the metric has no slope at the clean run" in shown
    assert "exact effect on the metric" not in shown


def test_one_pair_of_many_shows_its_own_features() -> None:
    shown = texts(drawn(features_changed.patching(2, own=True), example=1))
    assert {"pair 1 of 2 (from 0)", "effect on the metric", "feature 7"} <= set(shown)
    assert "both" not in shown
    assert "example 1 of 2 (from 0)" in texts(drawn(features_changed.ablation(2, own=True), example=1))


def test_direct_logit_attribution_shows_the_features_beside_the_rest_of_their_site() -> None:
    shown = texts(drawn(attributions.direct_logit_of_features()))
    assert {"feature 7", "other features", "all features", "b_dec", "error ε", "outside the site"} <= set(shown)
    over = texts(drawn(attributions.direct_logit_of_features(listed=False)))
    assert "over the norm" in over
    assert "other features" not in over


def test_features_are_told_by_the_tokens_that_they_promote() -> None:
    shown = texts(drawn(samples.features()))
    assert {"7  ␣Paris", "8", "bold: over the SAE's norm threshold, left out"} <= set(shown)


def test_features_asked_for_are_the_ones_drawn() -> None:
    assert "42" in texts(drawn(samples.features(asked=True)))


def test_a_feature_that_never_fires_leaves_nothing_to_draw() -> None:
    result = samples.features()
    silent = result.prompts[0].model_copy(update={"top": ()})
    with pytest.raises(Conflict) as refusal:
        drawn(result.model_copy(update={"prompts": (silent,)}))
    assert refusal.value.code == ErrorCode.NO_FIGURE


def test_attention_that_was_read_is_drawn_as_query_by_key() -> None:
    shown = texts(drawn(samples.activations()))
    assert {"resid_post", "z", "pattern a1.h0", "pattern a1.h1", "attn_scores a1.h0", "query", "key"} <= set(shown)
    assert "grey: not read, or masked" in shown


def test_attributions_are_running_text_with_a_number_below_each_token() -> None:
    shown = texts(part(drawn(attributions.gradient_x_input()), "panel-0"))
    assert shown[:4] == ["When", "−1.00", "␣John", "−0.57"]


def test_integrated_gradients_state_what_is_missing_to_completeness() -> None:
    (stated,) = [text for text in texts(drawn(attributions.integrated_gradients())) if "completeness" in text]
    assert "sum of attributions 6.990, completeness gap 0.010" in stated


def test_attention_shows_every_heads_scores_and_the_patterns_asked_for() -> None:
    shown = texts(drawn(samples.attention()))
    assert {"previous_token", "induction · random tokens", "a1.h0", "a1.h3", "query", "key", "␣Mary"} <= set(shown)
    assert "grey: no token that such a head would look for" in shown
    with pytest.raises(Conflict, match="neither patterns nor scores"):
        drawn(samples.attention(patterns=False, scores=False))


def test_path_patching_ranks_its_senders_and_places_them_by_layer_and_head() -> None:
    picture = drawn(samples.path_patching())
    title = (
        "path patching · to a9.h0<q>, a9.h1<q>, a9.h2<q>, a9.h3<q>, a9.h4<q>, a9.h5<q> and 2 more · denoising · tiny"
    )
    assert title in texts(picture)
    ranked = [text for text in texts(part(picture, "panel-0")) if text in ("a0.h0", "a0.h3", "a2.h1", "m1", "input")]
    assert ranked == ["m1", "a0.h0", "a2.h1", "a0.h3", "input"]
    assert {"0", "1", "2", "3", "MLP"} <= set(texts(part(picture, "panel-1")))


def test_path_patching_by_position_has_a_row_per_sender() -> None:
    shown = texts(part(drawn(samples.path_patching(by_position=True)), "panel-0"))
    assert {"a2.h1", "input", "sender", "␣John/␣Mary"} <= set(shown)


def test_edges_are_ranked_and_where_all_scores_are_there_also_a_matrix() -> None:
    picture = drawn(attributions.edges())
    assert {"input->a1.h0<k>", "a0.h0->a1.h0<k>"} <= set(texts(part(picture, "panel-0")))
    assert {"writer", "reader", "logits", "m0"} <= set(texts(part(picture, "panel-1")))
    assert "writer" not in texts(drawn(attributions.edges(scores=False)))


def test_the_edges_of_one_pair_are_ranked_by_its_own_scores() -> None:
    shown = texts(part(drawn(attributions.edges(2), example=1), "panel-0"))
    assert [text for text in shown if "->" in text][:2] == ["input->a1.h0<k>", "a0.h0->a1.h0<k>"]
    assert len([text for text in shown if "->" in text]) == 7


def test_feature_attribution_by_position_shows_the_check_of_its_cells_beside_the_features_own() -> None:
    placed = drawn(attributions.feature_attribution(by_position=True))
    assert "the check: features patched exactly" in texts(part(placed, "panel-1"))
    assert {"the check: one position each", "sampled"} <= set(texts(part(placed, "panel-2")))
    assert "check: largest error 0.500, by position 0.250" in texts(placed)
    assert "check: largest error 0.500" in texts(drawn(attributions.feature_attribution()))


def test_attribution_patching_shows_every_site_and_its_own_check() -> None:
    shown = texts(drawn(attributions.attribution_patching(8)))
    assert {"z S2", "z END", "mlp_out", "exact effect", "estimated effect", "strongest", "sampled"} <= set(shown)
    (check,) = [text for text in shown if text.startswith("check: ")]
    assert "largest error 1.000 (z of layer 0, head 0 at position S2), 1 false negatives" in check
    with pytest.raises(Conflict, match="that one alone"):
        drawn(attributions.attribution_patching(8), example=1)


def test_the_logit_lens_has_the_likeliest_token_in_every_cell() -> None:
    table = texts(part(drawn(samples.logit_lens()), "panel-0"))
    assert table.count("␣Mary") == 3 + 1
    assert {"embed", "0", "1"} <= set(table)


def test_the_logit_lens_shows_the_metric_beside_the_divergence() -> None:
    assert {"metric", "divergence"} <= set(texts(drawn(samples.logit_lens())))
    assert "metric" not in texts(drawn(samples.logit_lens(metric=False)))


def test_an_ablation_says_what_it_put_in_the_place() -> None:
    shown = texts(drawn(samples.ablation(8)))
    assert {"mean ablation · z · tiny", "mean at each position", "mean over 8 examples"} <= set(shown)
    assert "example 1 of 2 (from 0)" in texts(drawn(samples.ablation(2, own=True), example=1))


def test_an_intervention_shows_the_metric_and_the_likeliest_tokens_of_both_runs() -> None:
    shown = texts(drawn(samples.intervention()))
    assert {"unpatched", "patched", "␣Mary", "␣John", "likeliest next tokens of example 0"} <= set(shown)


def test_an_intervention_that_read_activations_alone_refers_to_their_kind() -> None:
    with pytest.raises(Conflict, match="activations") as refusal:
        drawn(samples.intervention(metric=False, top=()))
    assert refusal.value.code == ErrorCode.NO_FIGURE


def test_generation_has_a_text_per_strength_with_its_scores() -> None:
    result = generations.generation()
    shown = texts(drawn(result))
    assert {"−log p under the unsteered model (nats)", "prompt 0 of 1 (from 0)"} <= set(shown)
    titles = [text for text in shown if " · mean log p: " in text]
    assert [text.split(" · ")[0] for text in titles] == ["unsteered", "strength −2", "strength 4"]
    assert "add feature 7 resid_post 1; ablate head a0.h2" in shown


def test_a_direction_shows_the_layer_that_separates_best() -> None:
    assert "projections, layer 2" in texts(drawn(generations.direction(held_out=True)))
    assert "projections, layer 0" in texts(drawn(generations.direction(), example=0))


def test_one_pair_of_many_is_drawn_when_its_effects_were_asked_for() -> None:
    result = samples.patching(("layer", "position"), samples.ramp(3, 8), count=2, own=True)
    shown = texts(drawn(result, example=1))
    assert {"pair 1 of 2 (from 0)", "effect on the metric"} <= set(shown)


def test_one_pair_whose_effects_were_not_asked_for_is_a_conflict_that_names_the_flag() -> None:
    with pytest.raises(Conflict, match="per_pair") as refusal:
        drawn(LAYERS_BY_HEADS, example=1)
    assert refusal.value.code == ErrorCode.NO_FIGURE
    with pytest.raises(Conflict, match="per_pair"):
        drawn(features_changed.patching(8), example=1)
    for result in (attributions.direct_logit(8), samples.ablation(8), features_changed.ablation(8)):
        with pytest.raises(Conflict, match="per_example"):
            drawn(result, example=1)


@pytest.mark.parametrize("name", RESULTS)
def test_an_example_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="no example 99") as refusal:
        drawn(RESULTS[name], example=99)
    assert refusal.value.code == ErrorCode.UNKNOWN_EXAMPLE


def test_the_single_pair_is_drawn_alike_by_its_number() -> None:
    assert cells(LAYERS_BY_POSITIONS) == cells(LAYERS_BY_POSITIONS, example=0)


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize(
    "result",
    [
        samples.patching(("layer", "position"), samples.ramp(2, len(samples.HARD)), prompt=samples.HARD),
        samples.features(samples.HARD),
        samples.activations(samples.HARD),
        samples.intervention(top=samples.HARD),
        attributions.gradient_x_input(samples.HARD),
        samples.logit_lens(samples.HARD),
        samples.attention(samples.HARD),
        generations.generation(samples.HARD),
        generations.direction(samples.HARD),
    ],
)
def test_no_token_is_too_hard_to_draw(result: JobResult, media_type: str) -> None:
    assert draw(result, media_type)


def test_the_results_warnings_stand_below_it_whatever_they_quote() -> None:
    warned = LAYERS_BY_HEADS.model_copy(update={"warnings": ("no effect at \U000e0100",)})
    assert "no effect at \\U000e0100" in texts(drawn(warned))


def test_tokens_are_text_and_never_markup_or_formulas() -> None:
    shown = texts(drawn(samples.features(samples.HARD)))
    assert {"$x_1$", "<b>&", "\\n", "\\x00", "␣Привет", "\\u202e", "a--b"} <= set(shown)


def cells(result: JobResult, example: int | None = None) -> list[str]:
    """The colours of the first panel's cells."""
    marks = part(drawn(result, example), "panel-0").iter()
    return [mark.get("style", "") for mark in marks if "fill: #" in mark.get("style", "")]
