"""What a picture calls a feature."""

from services.contracts.features import FeaturesResult
from services.figures import labels

_PROMOTED = 3


def feature_name(result: FeaturesResult, index: int) -> str:
    """The feature's number and the tokens that it promotes."""
    effect = next((effect for effect in result.effects if effect.index == index), None)
    promoted = [labels.token(token.token, 10) for token in effect.promoted[:_PROMOTED]] if effect else []
    return f"{index}  {' '.join(promoted)}".rstrip()


def numbered_feature(index: int) -> str:
    """A feature of which the result knows no more than its number."""
    return f"feature {index}"
