"""Does steering by a feature move what it should? 20 seeded live features of the SAE of SmolLM2-135M's layer 15.

    python -m benchmarks.steering [--threads 1]

1. the features are a seeded draw of all that fire on the index's corpus; strengths and prompts were fixed before;
2. texts: eight prompts go on for 32 sampled tokens, without steering and with the feature added at each strength; then
   the *unsteered* model reads all texts, and the feature's mean activation over the new tokens is compared. Nothing is
   added while it is measured: it rises only if the steered model wrote tokens that the feature fires on. As a control,
   the same of the texts steered by each of the other 19 features;
3. tokens: the log probability, after each prompt, of the ten tokens that the feature's decoder row promotes through
   W_U. What is added reaches the logits directly too, so that this says less.
"""

import argparse
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.laboratory import Laboratory
from benchmarks.report import GROUND_TRUTH, circumstances, table, write_section
from services.catalogue.catalogue import sae_folder
from services.catalogue.feature_index import FeatureIndex, open_index
from services.contracts.generation import GenerationResult, PromptTexts
from services.engine.outcome import Outcome
from services.engine.readout import TokenLogProbs
from services.engine.row import Capture, FeatureChange, Intervention, Row, Site
from services.engine.ticket import JobTicket
from services.saes.bundle import load_sae

MODEL, SAE_ID = "smollm2-135m", "smollm2-135m-l15-resid-post"
INDEX = Path(__file__).resolve().parents[1] / "assets/saes" / SAE_ID / "features.sqlite"
FEATURES, SEED, NEW_TOKENS, PROMOTED = 20, 0, 32, 10
STRENGTHS = (0.25, 0.5, 1.0)
"""In mean norms of the site's activations."""
DOWN = -0.5
PROMPTS = (
    "The",
    "I think that",
    "In the morning",
    "She said that",
    "Once upon a time",
    "The best way to",
    "It is well known that",
    "My friend told me about",
)


@dataclass(frozen=True)
class Moved:
    """What steering by one feature did: the mean activation of each feature of the draw in the texts by strength, 0
    first, and its own promoted tokens' mean log probability by strength, `DOWN`, 0 and up."""

    feature: int
    of_all: dict[int, tuple[float, ...]]
    log_probs: tuple[float, ...]

    @property
    def activations(self) -> tuple[float, ...]:
        return self.of_all[self.feature]


class Bench:
    def __init__(self, laboratory: Laboratory, index: FeatureIndex) -> None:
        self.features = live_features(index)
        self.laboratory = laboratory
        self.index = index
        self.facts = laboratory.catalogue.sae(SAE_ID)
        self.sae = load_sae(sae_folder(laboratory.home, SAE_ID))
        self.site = Site(self.facts.site, self.facts.layer)

    def move(self, feature: int) -> Moved:
        """One generation job, and what the unsteered model makes of its texts."""
        result = self.laboratory.run(
            {
                "kind": "generation",
                "prompts": PROMPTS,
                "max_new_tokens": NEW_TOKENS,
                "stop": [],
                "sampling": {"type": "sampled", "seed": SEED},
                "steering": [{"type": "feature", "sae": SAE_ID, "index": feature}],
                "strengths": STRENGTHS,
                "unit": "mean_norm",
                "log_probs": False,
            }
        )
        assert isinstance(result, GenerationResult)
        amount = result.steering[0].amount
        assert amount is not None
        return Moved(feature, self._activations(result.prompts), self._log_probs(feature, amount, result.prompts))

    def _activations(self, prompts: Sequence[PromptTexts]) -> dict[int, tuple[float, ...]]:
        """Over the new tokens of all prompts within the norm threshold, read by the unsteered model."""
        capture = Capture(self.site)
        rows = [
            (place, len(prompt.tokens.ids), Row((*prompt.tokens.ids, *text.tokens), captures=(capture,)))
            for prompt in prompts
            for place, text in enumerate((prompt.unsteered, *prompt.steered))
        ]
        outcomes = self._run([row for _, _, row in rows])
        found: list[list[torch.Tensor]] = [[] for _ in range(1 + len(STRENGTHS))]
        for (place, start, _), outcome in zip(rows, outcomes, strict=True):
            x = outcome.captures[capture][start:]
            found[place].append(self.sae.encode_columns(x[self.sae.within_norm(x)], self.features))
        means = [torch.cat(one).mean(dim=0).tolist() for one in found]
        return {feature: tuple(mean[place] for mean in means) for place, feature in enumerate(self.features)}

    def _log_probs(self, feature: int, amount: float, prompts: Sequence[PromptTexts]) -> tuple[float, ...]:
        """Of the promoted tokens as the first new one: mean over tokens and prompts, in nats."""
        promoted = tuple(token.token_id for token in self.index.card(feature).promoted[:PROMOTED])
        strengths = (DOWN, 0.0, *STRENGTHS)
        rows = [
            Row(
                prompt.tokens.ids,
                self._added(feature, strength * amount, len(prompt.tokens.ids)) if strength else (),
                readout=TokenLogProbs(len(prompt.tokens.ids) - 1, promoted),
            )
            for strength in strengths
            for prompt in prompts
        ]
        means = [float(outcome.values().mean()) for outcome in self._run(rows)]
        count = len(prompts)
        return tuple(sum(means[place * count :][:count]) / count for place in range(len(strengths)))

    def _added(self, feature: int, amount: float, length: int) -> tuple[Intervention, ...]:
        change = FeatureChange(self.sae, added=((feature, amount),))
        return (Intervention(self.site, tuple(range(1, length)), "change_features", change),)

    def _run(self, rows: Sequence[Row]) -> list[Outcome]:
        return self.laboratory.engine.run(self.laboratory.model, rows, job=JobTicket("steering", owner="steering"))


def live_features(index: FeatureIndex) -> list[int]:
    """A seeded draw of all that fire at all."""
    live = [feature for feature in range(index.features) if index.card(feature).active_tokens]
    return sorted(random.Random(SEED).sample(live, FEATURES))  # noqa: S311 - a stated draw


def report(moved: Sequence[Moved], circumstances: str) -> str:
    counts = []
    for place, strength in enumerate(STRENGTHS, 1):
        rises = sum(one.activations[place] > one.activations[0] for one in moved)
        falls = sum(one.activations[place] < one.activations[0] for one in moved)
        others = [one.of_all[other.feature] for one in moved for other in moved if other is not one]
        elsewhere = sum(other[place] > other[0] for other in others) / len(others)
        promoted = sum(one.log_probs[place + 1] > one.log_probs[1] for one in moved)
        counts.append(
            (
                f"+{strength:g}",
                f"{rises} of {len(moved)}",
                f"{falls}",
                f"{elsewhere:.0%}",
                f"{promoted} of {len(moved)}",
            )
        )
    lowered = sum(one.log_probs[0] < one.log_probs[1] for one in moved)
    each = [
        (
            str(one.feature),
            *(f"{value:.3f}" for value in one.activations),
            *(f"{value:.2f}".replace("-", "−") for value in (one.log_probs[1], *one.log_probs[2:])),
        )
        for one in moved
    ]
    names = tuple(f"+{strength:g}" for strength in STRENGTHS)
    what = (
        f"{len(moved)} seeded live features of `{SAE_ID}` (all of the draw), added at every position but 0; strengths "
        f"in mean norms of the site. {len(PROMPTS)} prompts × {NEW_TOKENS} sampled tokens, seed {SEED}."
    )
    asked = (
        "Does the *unsteered* model, reading what the steered one wrote, find the feature more active than in the "
        "text written without steering? How often is that so of texts steered by another of the features? And are the "
        "feature's ten promoted tokens likelier as the next one?"
    )
    return "\n\n".join(
        [
            what,
            asked,
            table(
                (
                    "strength",
                    "more active in the texts",
                    "less active",
                    "more active in others' texts",
                    "promoted tokens likelier",
                ),
                counts,
            ),
            f"At {DOWN:g} the promoted tokens are less likely for {lowered} of {len(moved)}.".replace("-", "−"),
            "Mean activation over the new tokens, and mean log probability of the promoted tokens (nats), by strength:",
            table(("feature", "0", *names, "log p: 0", *(f"log p: {name}" for name in names)), each),
            circumstances,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    laboratory, index = Laboratory(MODEL, given.threads), open_index(INDEX, sae_id=SAE_ID)
    before = os.getloadavg()[0]
    moved = []
    with laboratory.engine:
        bench = Bench(laboratory, index)
        for feature in bench.features:
            moved.append(bench.move(feature))
            print(moved[-1], flush=True)
    said = circumstances(
        f"python -m benchmarks.steering --threads {given.threads}", given.threads, (before, os.getloadavg()[0])
    )
    write_section("Steering by features", report(moved, said), GROUND_TRUTH)


if __name__ == "__main__":
    main()
