"""What a picture calls a feature."""

from collections.abc import Sequence

from services.contracts.features import FeatureEffect
from services.figures import labels

_PROMOTED = 3


def feature_name(effects: Sequence[FeatureEffect], index: int) -> str:
    """The feature's number and the tokens that it promotes, where `effects` has them."""
    effect = next((effect for effect in effects if effect.index == index), None)
    promoted = [labels.token(token.token, 10) for token in effect.promoted[:_PROMOTED]] if effect else []
    return f"{index}  {' '.join(promoted)}".rstrip()


def name_among_others(effects: Sequence[FeatureEffect], index: int) -> str:
    """The same, told from parts that are no features."""
    return f"feature {feature_name(effects, index)}"
