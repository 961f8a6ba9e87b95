"""The jobs that drills run: small ones on the tiny model, a sweep that takes its time on SmolLM2."""

import itertools
from typing import Any

Body = dict[str, Any]

NAMES = ("Mary", "John", "Tom", "Anna")
VARIANTS = 24
"""Different small jobs: the same one must always give the same numbers, whatever died meanwhile."""


def small(number: int) -> Body:
    """Direct logit attribution on a repeated sequence of tokens; milliseconds."""
    first = 3 + number % VARIANTS
    period = [first + 5 * step for step in range(8)]
    return {
        "kind": "attribution",
        "model": "induction-2l",
        "method": {"type": "direct_logit_attribution"},
        "examples": [
            {"prompt": {"type": "tokens", "tokens": [0, *period, *period]}, "answer": period[0], "foil": period[3]}
        ],
        "cache": False,
    }


def sweep(*, pairs: int = 1, layers: int = 30, first: int = 0) -> Body:
    """The heads of SmolLM2 at every position of IOI pairs from number `first` on, one row each: ten seconds of engine
    work a pair."""
    return {
        "kind": "patching",
        "model": "smollm2-135m",
        "method": {
            "type": "activation_patching",
            "site": "z",
            "layers": list(range(layers)),
            "positions": list(range(14)),
        },
        "pairs": [_pair(*names) for names in list(itertools.permutations(NAMES, 2))[first : first + pairs]],
        "cache": False,
    }


def gradients(*, steps: int) -> Body:
    """Integrated gradients of SmolLM2 on an IOI pair: a forward and a backward pass a step."""
    return {
        "kind": "attribution",
        "model": "smollm2-135m",
        "method": {"type": "integrated_gradients", "steps": steps},
        "pairs": [_pair("Mary", "John")],
        "cache": False,
    }


def middling(number: int) -> Body:
    """Direct logit attribution on a text of some hundred tokens: one row, a tenth of a second of SmolLM2."""
    text = "The researchers looked at the model again and again, and every time they looked it said something new. " * 6
    return {
        "kind": "attribution",
        "model": "smollm2-135m",
        "method": {"type": "direct_logit_attribution"},
        "examples": [{"prompt": text + str(number % VARIANTS), "answer": " Mary", "foil": " John"}],
        "cache": False,
    }


def gluttonous() -> Body:
    """Activations of a long text, as many as one result may hold: hundreds of megabytes while it is put together."""
    text = (
        "The researchers looked at the model again and again, and every time they looked it said something new. " * 39
    )
    sites = [{"site": "mlp_post", "layer": layer} for layer in range(12)]
    return {"kind": "activations", "model": "smollm2-135m", "prompts": [text], "sites": sites, "cache": False}


def _pair(answer: str, foil: str) -> Body:
    clean = f"When {foil} and {answer} went to the shops, {foil} gave the bag to"
    corrupted = f"When {foil} and {answer} went to the shops, {answer} gave the bag to"
    return {"clean": clean, "corrupted": corrupted, "answer": f" {answer}", "foil": f" {foil}"}


def external() -> Body:
    """A job whose result is too large for its record: its tensors go to the store of blobs."""
    return {
        "kind": "activations",
        "model": "induction-2l",
        "prompts": [{"type": "tokens", "tokens": [0, *range(3, 123)]}],
        "sites": [{"site": "resid_post", "layer": layer} for layer in range(2)],
        "cache": False,
    }
