"""Who tells the induction heads of the two-layer model what they need to know: path patching, by jobs alone."""

from collections.abc import Sequence

import numpy as np

from examples.client import Array, Json, Lensd
from examples.induction_report import SMALL

HEADS = 8
"""In each layer."""

SENDERS = ("input", *(f"a0.h{head}" for head in range(HEADS)))
READERS = tuple(f"a1.h{head}" for head in range(HEADS))
"""The embedding and the first layer, which write, and the second layer, which reads."""

PLACES = ("A", "answer", "B", "foil")

LOGIT_DIFF = {"type": "logit_diff"}

Head = tuple[int, int]
"""Layer and head."""


def swapped_pairs(texts: Sequence[Sequence[str]]) -> list[Json]:
    """Texts that are being said again and stop at a word A, and the same where A and B had changed places at first.

    In the clean text A was followed by the answer, in the corrupted one by the foil. A comes from the first half of the
    words, B from the second, so B has not been said again. BOS is position 0.
    """
    pairs = []
    for number, words in enumerate(texts):
        half = len(words) // 2
        a, b = 1 + number % (half - 2), half + number % (half - 1)
        other = list(words)
        other[a], other[b] = words[b], words[a]
        again = list(words[: a + 1])
        pairs.append(
            {
                "clean": " ".join([*words, *again]),
                "corrupted": " ".join([*other, *again]),
                "answer": f" {words[a + 1]}",
                "foil": f" {words[b + 1]}",
                "positions": {"A": a + 1, "answer": a + 2, "B": b + 1, "foil": b + 2},
            }
        )
    return pairs


def paths(
    lensd: Lensd, pairs: Sequence[Json], receivers: Sequence[str], positions: Sequence[str] | None = None
) -> Json:
    """From one sender at a time to these receivers: the share of the way from the clean to the corrupted text."""
    method = {
        "type": "path_patching",
        "mode": "noising",
        "senders": list(SENDERS),
        "receivers": list(receivers),
        "positions": positions and list(positions),
    }
    job = {"kind": "patching", "model": SMALL, "method": method, "pairs": pairs, "metric": LOGIT_DIFF}
    result = lensd.run(job)
    return {
        "receivers": list(receivers),
        "positions": result["positions"],
        "normalized": lensd.array(result["normalized"]).tolist(),
        **{run: float(np.mean([pair["baselines"][run] for pair in result["pairs"]])) for run in ("clean", "corrupted")},
    }


def together(lensd: Lensd, pairs: Sequence[Json], heads: Sequence[Head]) -> list[float]:
    """As `paths`, from several heads of layer 0 at once to the keys of layer 1: each pair's effect, in logits.

    Two jobs a pair: one reads the keys when these heads write what they write in the corrupted text, the next puts
    those keys into the clean text, position by position.
    """
    effects = []
    for pair in pairs:
        source = {"type": "run", "prompt": pair["corrupted"]}
        sent = [
            {"site": "z", "layer": layer, "head": head, "operation": "set", "value": source} for layer, head in heads
        ]
        keys = {"site": "k", "layer": 1}
        read = intervened(lensd, pair, sent, activations=[keys])["activations"][0]
        received = [
            keys | {"positions": [position], "operation": "set", "value": {"type": "vector", "values": key.tolist()}}
            for position, key in enumerate(flat(lensd.array(read)))
        ]
        effects.append(intervened(lensd, pair, received, metric=LOGIT_DIFF)["metric"]["effect"])
    return effects


def intervened(lensd: Lensd, pair: Json, interventions: Sequence[Json], **read: Json | list[Json]) -> Json:
    """The clean text's example of one intervention job."""
    example = {"prompt": pair["clean"], "answer": pair["answer"], "foil": pair["foil"]}
    job = {"kind": "intervention", "model": SMALL, "examples": [example], "interventions": list(interventions)}
    (changed,) = lensd.run(job | read)["examples"]
    found: Json = changed
    return found


def flat(keys: Array) -> Array:
    """[position, head, d_head] with the heads one after the other, as a job takes a vector."""
    return keys.reshape(len(keys), -1)


def composition(lensd: Lensd, texts: Sequence[Sequence[str]], tellers: Sequence[Head]) -> Json:
    """What layer 0 tells layer 1: by what is read, head by head, by position, and from several heads at once."""
    pairs = swapped_pairs(texts)
    keys = [f"{head}<k>" for head in READERS]
    by_input = {f"{which} of layer 1": paths(lensd, pairs, [f"{head}<{which}>" for head in READERS]) for which in "kqv"}
    way = by_input["k of layer 1"]["corrupted"] - by_input["k of layer 1"]["clean"]
    return {
        "senders": SENDERS,
        "by_input": by_input | {"logits": paths(lensd, pairs, ["logits"])},
        "by_key": {key: paths(lensd, pairs, [key]) for key in keys},
        "by_position": paths(lensd, pairs, keys, PLACES),
        "together": [
            {"heads": heads, "normalized": float(np.mean(together(lensd, pairs, heads))) / way}
            for heads in (tellers[:1], tellers[:2], tellers[:4], tellers)
        ],
    }
