"""Which models and SAEs are served, read from the store: one folder each, with its facts beside the weights.

<home>/models/<id>/facts.json     <home>/saes/<id>/facts.json
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.catalogue.tokenizer import Tokenizer
from services.contracts.errors import ErrorCode, NotFound
from services.contracts.model import ModelFacts
from services.contracts.sae import SaeFacts

FACTS = "facts.json"


@dataclass(frozen=True)
class Catalogue:
    """The served models and SAEs by id; loads nothing but facts and, when asked, a tokenizer."""

    home: Path
    models: Mapping[str, ModelFacts]
    saes: Mapping[str, SaeFacts]
    _tokenizers: dict[str, Tokenizer] = field(default_factory=dict, repr=False)

    def model(self, model_id: str) -> ModelFacts:
        """The facts of a model; raises NotFound(UNKNOWN_MODEL)."""
        facts = self.models.get(model_id)
        if facts is None:
            raise NotFound(ErrorCode.UNKNOWN_MODEL, f"model {model_id!r} is not served: {_served(self.models)}")
        return facts

    def sae(self, sae_id: str) -> SaeFacts:
        """The facts of an SAE; raises NotFound(UNKNOWN_SAE)."""
        facts = self.saes.get(sae_id)
        if facts is None:
            raise NotFound(ErrorCode.UNKNOWN_SAE, f"SAE {sae_id!r} is not served: {_served(self.saes)}")
        return facts

    def tokenizer(self, model_id: str) -> Tokenizer:
        """The tokenizer of a model; raises NotFound(UNKNOWN_MODEL)."""
        facts = self.model(model_id)
        if model_id not in self._tokenizers:
            folder = model_folder(self.home, model_id)
            self._tokenizers[model_id] = Tokenizer(folder, facts.bos_token_id, facts.vocabulary)
        return self._tokenizers[model_id]

    def only(self, models: Collection[str]) -> "Catalogue":
        """The catalogue as if only `models`, with their SAEs, were served."""
        return Catalogue(
            self.home,
            {model_id: facts for model_id, facts in self.models.items() if model_id in models},
            {sae_id: facts for sae_id, facts in self.saes.items() if facts.model in models},
            self._tokenizers,
        )


def open_catalogue(home: Path) -> Catalogue:
    """Read every prepared model's and SAE's facts under `home`."""
    models = [ModelFacts.model_validate_json(path.read_bytes()) for path in sorted(home.glob(f"models/*/{FACTS}"))]
    saes = [SaeFacts.model_validate_json(path.read_bytes()) for path in sorted(home.glob(f"saes/*/{FACTS}"))]
    return Catalogue(home, {facts.id: facts for facts in models}, {facts.id: facts for facts in saes})


def model_folder(home: Path, model_id: str) -> Path:
    return home / "models" / model_id


def sae_folder(home: Path, sae_id: str) -> Path:
    return home / "saes" / sae_id


def _served(entries: Mapping[str, object]) -> str:
    return f"served are {', '.join(sorted(entries))}" if entries else "none is served"
