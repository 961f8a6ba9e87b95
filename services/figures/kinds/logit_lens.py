"""The logit lens: each layer's likeliest next token, the last layer at the top; beside it the metric."""

import numpy as np

from services.contracts.logit_lens import LogitLensResult
from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.heatmap import Heatmap
from services.figures.kinds.reading import array, notes, of_all, pick, title
from services.figures.picture import Panel, Picture
from services.figures.scale import Scale, probability, sequential, signed
from services.figures.table import token_table


def logit_lens_picture(result: LogitLensResult, example: int | None) -> Picture:
    chosen = pick(result.examples, example)
    layers = tuple(str(layer) for layer in result.layers)
    columns = labels.tokens([chosen.tokens.strings[position] for position in chosen.positions])
    table = token_table(
        [[here[0].token for here in line] for line in chosen.top],
        np.array([[here[0].probability for here in line] for line in chosen.top], dtype=np.float32),
        probability("probability of the likeliest token"),
        rows=layers,
        columns=columns,
        title="likeliest next token",
    )
    # The embedding is so far from an output that it would leave the layers without a colour.
    inner = [row for row, layer in enumerate(result.layers) if layer != "embed"] or [0]
    kl = array(chosen.kl)
    maps: list[Panel] = [_map(kl, sequential("KL(final ‖ layer) (nats)", kl[inner]), "divergence", layers, columns)]
    if chosen.metric is not None:
        metric = array(chosen.metric)
        maps.insert(0, _map(metric, signed("metric", metric[inner]), "metric", layers, columns))
    return Picture(
        title(result, "logit lens"),
        ((table,), tuple(maps)),
        notes(result, of_all(len(result.examples), "example", example or 0)),
    )


def _map(values: FloatArray, scale: Scale, name: str, layers: tuple[str, ...], columns: tuple[str, ...]) -> Heatmap:
    return Heatmap(values, layers, columns, scale, name, "layer", "token", up=True)
