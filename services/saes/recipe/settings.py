"""Every number that decides what the recipe produces, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Sizes are in tokens unless said otherwise; steps are optimiser steps of `batch_size` activations."""

    model_id: str = "smollm2-135m"
    model_name: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    layers: tuple[int, ...] = (7, 15, 23)
    """An early, a middle and a late layer; one pass over the text gives the activations of all."""
    seed: int = 0

    context: int = 128
    forward_rows: int = 32

    d_sae: int = 4096
    k: int = 32
    norm_factor: float = 3.0
    """Tokens whose norm exceeds this many medians are neither trained on nor encoded (attention sinks)."""

    epochs: int = 6
    batch_size: int = 1024
    learning_rate: float = 8e-4
    warmup_steps: int = 50
    decay_fraction: float = 0.4
    aux_coefficient: float = 1.0
    dead_window: int = 100
    checkpoint_every: int = 250

    check_sample_rows: int = 8
    """Rows of held-out text, public-domain sources only, shipped beside the SAE so that a test can redo the card."""

    def sae_id(self, layer: int) -> str:
        """The catalogue id of the SAE of one layer."""
        return f"{self.model_id}-l{layer}-resid-post"

    def hook_name(self, layer: int) -> str:
        """The hook point's name in TransformerLens."""
        return f"blocks.{layer}.hook_resid_post"
