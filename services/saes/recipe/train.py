"""Training a TopK SAE (Gao et al. 2024, arXiv:2406.04093), on cached activations.

1. Scale activations so that their deviation from the mean has unit variance per dimension; b_dec starts at the mean.
2. Minimise the squared error of the reconstruction from the k largest latents, by Adam, decoder rows kept at unit norm.
3. Latents that have not fired for `dead_window` steps are trained to explain the remaining error (auxiliary loss).
4. Fold the scale back into the biases, so that the SAE reads raw activations.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from services.saes.progress import how_far
from services.saes.recipe.activations import Activations
from services.saes.recipe.checkpoint import keep, kept
from services.saes.recipe.settings import Recipe
from services.saes.sae import Sae, TopK


@dataclass
class Parameters:
    """The weights in training, and for every latent the number of steps since it last fired."""

    W_enc: Float[Tensor, "d_model d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_model"]
    b_dec: Float[Tensor, " d_model"]
    silent_steps: Int[Tensor, " d_sae"]

    @property
    def trained(self) -> dict[str, Tensor]:
        return {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}


def train(recipe: Recipe, layer: int, activations: Activations, work_dir: Path) -> Sae:
    """Trains the SAE of one layer to the end, going on from its last checkpoint in `work_dir` if there is one."""
    checkpoint = work_dir / f"checkpoint-l{layer}.safetensors"
    mean = torch.from_numpy(activations.mean)
    scale = _scale(activations, mean, recipe.seed)
    parameters = _initial(recipe, mean / scale)
    optimiser = torch.optim.Adam(parameters.trained.values(), lr=recipe.learning_rate, eps=6.25e-10, fused=True)
    per_epoch = len(activations.kept) // recipe.batch_size
    steps = per_epoch * recipe.epochs
    step = _resume(parameters, optimiser, checkpoint)
    started, first = time.monotonic(), step
    while step < steps:
        epoch, offset = divmod(step, per_epoch)
        order = torch.randperm(len(activations.kept), generator=torch.Generator().manual_seed(recipe.seed + epoch))
        for index in range(offset, per_epoch):
            batch = order[index * recipe.batch_size : (index + 1) * recipe.batch_size].numpy()
            x = torch.from_numpy(activations.values[activations.kept[batch]]).float() / scale
            optimiser.param_groups[0]["lr"] = recipe.learning_rate * _schedule(recipe, step, steps)
            explained = _step(recipe, parameters, optimiser, x)
            step += 1
            if step % recipe.checkpoint_every == 0 or step == steps:
                _checkpoint(parameters, optimiser, step, checkpoint)
                dead = int((parameters.silent_steps > recipe.dead_window).sum())
                seconds = time.monotonic() - started
                speed = (step - first) * recipe.batch_size / seconds
                said = f"train: layer {layer}, step {step}/{steps}, explained {explained:.4f}, dead {dead}"
                print(f"{said}, {speed:.0f}/s, {how_far(step, steps, first=first, seconds=seconds)}", flush=True)
    return _finished(recipe, layer, parameters, scale, activations)


def _scale(activations: Activations, mean: Float[Tensor, " d_model"], seed: int) -> float:
    sample = torch.randint(len(activations.kept), (20_000,), generator=torch.Generator().manual_seed(seed)).numpy()
    x = torch.from_numpy(activations.values[activations.kept[sample]]).float()
    return float((x - mean).pow(2).mean().sqrt())


def _initial(recipe: Recipe, b_dec: Float[Tensor, " d_model"]) -> Parameters:
    generator = torch.Generator().manual_seed(recipe.seed)
    decoder = functional.normalize(torch.randn(recipe.d_sae, len(b_dec), generator=generator), dim=-1)
    parameters = Parameters(
        W_enc=decoder.T.contiguous(),
        b_enc=torch.zeros(recipe.d_sae),
        W_dec=decoder.clone(),
        b_dec=b_dec.clone(),
        silent_steps=torch.zeros(recipe.d_sae, dtype=torch.int64),
    )
    for tensor in parameters.trained.values():
        tensor.requires_grad_()
    return parameters


def _schedule(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, flat, then linear decay to zero over the last `decay_fraction`."""
    return min(1.0, (step + 1) / recipe.warmup_steps, (steps - step) / (steps * recipe.decay_fraction))


def _step(
    recipe: Recipe, parameters: Parameters, optimiser: torch.optim.Adam, x: Float[Tensor, "token d_model"]
) -> float:
    """One optimiser step; returns the batch's explained variance before it."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pre = ((x - parameters.b_dec) @ parameters.W_enc).float() + parameters.b_enc
    values, indices = pre.topk(recipe.k, dim=-1, sorted=False)
    values = values.relu()
    reconstruction = functional.embedding_bag(indices, parameters.W_dec, per_sample_weights=values, mode="sum")
    error = x - reconstruction - parameters.b_dec
    loss = error.pow(2).mean() + _auxiliary_loss(recipe, parameters, pre, error.detach())
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    with torch.no_grad():
        _keep_decoder_direction(parameters)
        optimiser.step()
        parameters.W_dec.copy_(functional.normalize(parameters.W_dec, dim=-1))
        fired = torch.zeros(recipe.d_sae, dtype=torch.bool)
        fired[indices[values > 0]] = True
        parameters.silent_steps.add_(1)[fired] = 0
        return 1.0 - float(error.pow(2).sum() / (x - x.mean(0)).pow(2).sum())


def _auxiliary_loss(
    recipe: Recipe,
    parameters: Parameters,
    pre: Float[Tensor, "token d_sae"],
    error: Float[Tensor, "token d_model"],
) -> Float[Tensor, ""]:
    """The squared error of explaining `error` with the largest of the dead latents, at most d_model/2 of them."""
    dead = (parameters.silent_steps > recipe.dead_window).nonzero().squeeze(-1)
    if len(dead) == 0:
        return error.new_zeros(())
    limit = error.shape[-1] // 2
    count = min(limit, len(dead))
    values, indices = pre[:, dead].topk(count, dim=-1, sorted=False)
    features = error.new_zeros(len(pre), len(dead)).scatter(-1, indices, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explained = features @ parameters.W_dec[dead]
    return recipe.aux_coefficient * min(1.0, len(dead) / limit) * (explained.float() - error).pow(2).mean()


def _keep_decoder_direction(parameters: Parameters) -> None:
    """Removes the part of the decoder's gradient that would only change the rows' norms."""
    gradient, rows = parameters.W_dec.grad, parameters.W_dec
    assert gradient is not None
    gradient -= (gradient * rows).sum(-1, keepdim=True) * rows


def _checkpoint(parameters: Parameters, optimiser: torch.optim.Adam, step: int, path: Path) -> None:
    tensors = {**parameters.trained, "silent_steps": parameters.silent_steps, "step": torch.tensor(step)}
    for name, tensor in parameters.trained.items():
        for key, value in optimiser.state[tensor].items():
            tensors[f"adam.{name}.{key}"] = value
    keep(path, tensors)


def _resume(parameters: Parameters, optimiser: torch.optim.Adam, path: Path) -> int:
    tensors = kept(path)
    if tensors is None:
        return 0
    with torch.no_grad():
        for name, tensor in parameters.trained.items():
            tensor.copy_(tensors[name])
            keys = [key for key in tensors if key.startswith(f"adam.{name}.")]
            optimiser.state[tensor] = {key.rsplit(".", 1)[1]: tensors[key] for key in keys}
        parameters.silent_steps.copy_(tensors["silent_steps"])
    return int(tensors["step"])


def _finished(recipe: Recipe, layer: int, parameters: Parameters, scale: float, activations: Activations) -> Sae:
    """The SAE on raw activations: TopK with ReLU is positively homogeneous, so only the biases carry the scale."""
    weights = {name: tensor.detach() for name, tensor in parameters.trained.items()}
    return Sae(
        W_enc=weights["W_enc"],
        b_enc=weights["b_enc"] * scale,
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"] * scale,
        activation=TopK(recipe.k),
        apply_b_dec_to_input=True,
        hook_name=recipe.hook_name(layer),
        model_id=recipe.model_id,
        prepend_bos=True,
        norm_threshold=activations.norm_threshold,
        mean_activation=torch.from_numpy(activations.mean),
    )
