"""How lensd's own SAEs are made: corpus, activations, training, evaluation, card. `python -m services.saes.recipe`."""
