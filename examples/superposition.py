"""Does an SAE find known features in superposition? A toy model (Elhage et al. 2022, arXiv:2209.10652) knows.

    python -m examples.superposition [--out DIR]

1. n = 64 sparse features, each present with p = 0.02, uniform in (0, 1), are squeezed into d = 16 dimensions by
   x̂ = ReLU(WᵀWx + b), trained on the squared error with equal importances.
2. A feature is represented when ‖W_i‖² > 0.5.
3. A standard SAE (ReLU, L1, unit decoder rows) of 64 latents is trained on h = Wx alone.
4. A represented feature is recovered when some decoder row has a cosine over 0.95 with W_i.

Three seeds, each of its own toy model and SAE; the first also with another L1 coefficient. No server. It writes
docs/superposition.json, docs/superposition.png and the tables of docs/superposition.md; with --out, the SAEs.
"""

import argparse
import time
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from examples.client import Json
from examples.superposition_report import write_report
from services.saes.bundle import save_sae
from services.saes.sae import Relu, Sae

DOCS = Path(__file__).resolve().parents[1] / "docs"

FEATURES, WIDTH, PRESENT = 64, 16, 0.02
REPRESENTED = 0.5
"""‖W_i‖² from which a feature counts as represented."""
RECOVERED = 0.95
"""Cosine to a decoder row over which it counts as recovered."""
L1, OTHER_L1 = 0.2, (0.1,)
SEEDS = (0, 1, 2)
LEARNING_RATE = 3e-3


def draw(count: int, generator: torch.Generator) -> Float[Tensor, "sample feature"]:
    """Feature values: uniform in (0, 1) with probability `PRESENT`, else zero."""
    values = torch.rand(count, FEATURES, generator=generator)
    return values * (torch.rand(count, FEATURES, generator=generator) < PRESENT)


def train_toy(seed: int, *, steps: int = 4000, batch: int = 1024) -> Float[Tensor, "d feature"]:
    """W of the toy model, trained by Adam with its learning rate falling to zero."""
    generator = torch.Generator().manual_seed(seed)
    W: Tensor = (torch.randn(WIDTH, FEATURES, generator=generator) / WIDTH**0.5).requires_grad_()
    b = torch.zeros(FEATURES, requires_grad=True)
    optimiser = torch.optim.Adam([W, b], lr=LEARNING_RATE)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        x = draw(batch, generator)
        loss = ((x @ W.T @ W + b).relu() - x).pow(2).sum(-1).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return W.detach()


def train_sae(
    W: Float[Tensor, "d feature"], seed: int, *, l1: float = L1, steps: int = 5000, batch: int = 1024
) -> tuple[Sae, float]:
    """An SAE of h = Wx, and its explained variance on fresh samples. The SAE sees neither W nor x.

    The loss is ‖h − ĥ‖² + l1 Σ f, a mean over samples; decoder rows are kept at unit norm.
    """
    generator = torch.Generator().manual_seed(100 + seed)
    W_dec = functional.normalize(torch.randn(FEATURES, WIDTH, generator=generator), dim=-1).requires_grad_()
    W_enc = W_dec.detach().T.clone().requires_grad_()
    b_enc, b_dec = (torch.zeros(size, requires_grad=True) for size in (FEATURES, WIDTH))
    optimiser = torch.optim.Adam([W_dec, W_enc, b_enc, b_dec], lr=LEARNING_RATE)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))
        h = draw(batch, generator) @ W.T
        features = ((h - b_dec) @ W_enc + b_enc).relu()
        error = h - features @ W_dec - b_dec
        loss = error.pow(2).sum(-1).mean() + l1 * features.sum(-1).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        with torch.no_grad():
            W_dec.copy_(functional.normalize(W_dec, dim=-1))
    sae = Sae(
        W_enc=W_enc.detach(),
        b_enc=b_enc.detach(),
        W_dec=W_dec.detach(),
        b_dec=b_dec.detach(),
        activation=Relu(),
        apply_b_dec_to_input=True,
        hook_name="blocks.0.hook_resid_post",
    )
    h = draw(20_000, generator) @ W.T
    unexplained = (h - sae.decode(sae.encode(h))).pow(2).sum() / (h - h.mean(0)).pow(2).sum()
    return sae, 1 - float(unexplained)


def recovery(W: Float[Tensor, "d feature"], W_dec: Float[Tensor, "latent d"]) -> Json:
    """How many features are represented, and each one's largest cosine with a decoder row."""
    norms = W.pow(2).sum(0)
    cosines = (functional.normalize(W_dec, dim=-1) @ functional.normalize(W, dim=0)).amax(0)[norms > REPRESENTED]
    return {
        "represented": len(cosines),
        "recovered": float((cosines > RECOVERED).float().mean()) if len(cosines) else 0.0,
        "norms": norms.tolist(),
        "cosines": cosines.tolist(),
    }


def save(sae: Sae, folder: Path) -> None:
    """As a bundle that SAELens loads too, in float32."""
    save_sae(sae, folder, model_name="toy-model-of-superposition", context=1, dtype=torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for the SAEs, one bundle per seed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    found: Json = {"runs": []}
    for seed in SEEDS:
        W = train_toy(seed)
        if seed == SEEDS[0]:
            found["gram"] = (W.T @ W).tolist()
        for l1 in sorted((L1, *OTHER_L1)) if seed == SEEDS[0] else (L1,):
            sae, explained = train_sae(W, seed, l1=l1)
            run = {"seed": seed, "l1": l1, "explained_variance": explained} | recovery(W, sae.W_dec)
            found["runs"].append(run)
            print(f"seed {seed}, L1 {l1}: {run['recovered']:.1%} of {run['represented']} recovered", flush=True)
            if asked.out is not None and l1 == L1:
                save(sae, asked.out / f"superposition-{seed}")
    found["seconds"] = round(time.monotonic() - started, 1)
    write_report(found, DOCS)


if __name__ == "__main__":
    main()
