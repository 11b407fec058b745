"""The last linear layer: where labels lie open in a message, and what the model says to strangers.

``labels.py`` reads labels there. Everything here is computed from the model, the message and public
or made-up pictures, in float64 on the CPU once the features are known. Chapter 04.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flcourse.attacks.types import Leak
from flcourse.runtime import generator, seeded
from flcourse.vectors import flatten, load_row, unflatten

NUM_REFERENCES = 64  # made-up pictures: enough for a mean response, cheap on one core


class UnsupportedHeadError(ValueError):
    """The model does not end in a linear layer whose gradient is in the message."""


@dataclass(frozen=True)
class Head:
    """The last linear layer, ``logits = W·h + b``, and its gradients as the message shows them.

    ``weight`` ``[k, m]`` and ``bias`` ``[k]`` are the model's; ``weight_gradient`` and
    ``bias_gradient`` (``None`` where the message has none) are ``Leak.gradients``, so of one unit
    of gradient. ``exact`` says that the bias gradient, of softmax and cross-entropy, still adds up
    to zero: it was not pruned, rounded or noised.
    """

    name: str
    weight: Tensor
    bias: Tensor
    weight_gradient: Tensor | None
    bias_gradient: Tensor | None
    exact: bool

    def probabilities(self, features: Tensor) -> Tensor:
        """``softmax(W·h + b)``, or ``sigmoid`` for one logit: ``[n, m] -> [n, k]``."""
        logits = features @ self.weight.T + self.bias
        return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)


def reference_inputs(model: nn.Module, leak: Leak, seed: int = 0) -> Tensor:
    """Inputs that anyone can make up, ``[64, *image_shape]``: what the model says to no one.

    Pictures are grey mixed with uniform noise, from flat to pure noise; table rows are standard
    normal; tokens, for a model that embeds, are drawn at random.
    """
    rng = generator(seed, "reference inputs")
    like = next(model.parameters())
    shape = (NUM_REFERENCES, *leak.image_shape)
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is not None and len(leak.image_shape) == 1:
        return torch.randint(embedding.num_embeddings, shape, generator=rng).to(like.device)
    if len(leak.image_shape) != 3:
        return torch.randn(shape, generator=rng).to(like)
    noise = torch.rand(shape, generator=rng)
    strength = torch.linspace(0, 1, NUM_REFERENCES).reshape(-1, 1, 1, 1)
    return (0.5 + strength * (noise - 0.5)).to(like)


def find_head(model: nn.Module, leak: Leak) -> Head:
    """The last ``nn.Linear`` in module order that gives the model's logits, checked by running it.

    A final ``LogSoftmax`` changes nothing and is allowed.
    Raises ``UnsupportedHeadError`` if there is none, or its gradient is not in the message alone.
    """
    inputs = reference_inputs(model, leak)[:2]
    logits = respond(model, leak, inputs)
    if logits.dim() != 2:
        raise UnsupportedHeadError(f"the model gives {list(logits.shape)}, not logits [b, k]")
    classes = logits.shape[1]
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    if not found:
        raise UnsupportedHeadError(f"no linear layer gives the {classes} logits of the model")
    name, layer = found[-1]
    features = respond(model, leak, inputs, at=name)
    own = features @ layer.weight.detach().T
    own = own if layer.bias is None else own + layer.bias.detach()
    if classes > 1:
        own, logits = own.log_softmax(dim=1), logits.log_softmax(dim=1)
    if own.shape != logits.shape or not torch.allclose(own, logits, rtol=1e-3, atol=1e-4):
        raise UnsupportedHeadError(f"the logits are not the output of {name or 'the linear layer'}")
    gradients = leak.gradients
    holders: dict[int, list[str]] = {}
    for own_name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(own_name)

    def seen(parameter: Tensor | None) -> Tensor | None:
        """Its gradient, unless it is frozen, missing or shared with another layer."""
        names = [] if parameter is None else holders[id(parameter)]
        return (
            gradients[names[0]].double().cpu()
            if len(names) == 1 and names[0] in gradients
            else None
        )

    weight_gradient, bias_gradient = seen(layer.weight), seen(layer.bias)
    if weight_gradient is None and bias_gradient is None:
        raise UnsupportedHeadError(
            f"the message has no gradient of {name or 'the linear layer'} alone (frozen or shared)"
        )
    bias = layer.weight.new_zeros(classes) if layer.bias is None else layer.bias
    total = 0.0 if bias_gradient is None else float(bias_gradient.sum().abs())
    mass = 0.0 if bias_gradient is None else float(bias_gradient.abs().sum())
    return Head(
        name=name,
        weight=layer.weight.detach().double().cpu(),
        bias=bias.detach().double().cpu(),
        weight_gradient=weight_gradient,
        bias_gradient=bias_gradient,
        exact=leak.noise_std is None and (classes == 1 or total <= 1e-3 * mass),
    )


@torch.no_grad()
def respond(model: nn.Module, leak: Leak, inputs: Tensor, at: str | None = None) -> Tensor:
    """The model's outputs for ``inputs``, or what enters its module ``at``; the model is unchanged.

    In the mode of the client: an update was trained in training mode. With fewer than two inputs,
    BatchNorm has no batch to normalise by, so then it is evaluation mode.
    """
    worker = copy.deepcopy(model)
    worker.train((leak.kind == "update" or model.training) and len(inputs) > 2)
    caught: list[Tensor] = []
    if at is not None:
        worker.get_submodule(at).register_forward_pre_hook(
            lambda module, arguments: caught.append(arguments[0].detach())
        )
    with seeded(0, "dropout"):
        outputs: Tensor = worker(inputs)
    if at is None:
        return outputs
    if not caught or caught[-1].dim() != 2:
        raise UnsupportedHeadError(f"{at} does not see one row of features per sample")
    return caught[-1]


@dataclass(frozen=True)
class Path:
    """Where local training went: fractions ``[t]`` of the update and weights ``[t]``, summing to 1.

    At step ``t`` of ``T`` the weights have moved by ``S_t / S_T``, ``S_t = Σ_{τ≤t} (1 + μ + … +
    μ^(τ-1))``, if the gradient stays the same; its gradient enters ``1 + μ + … + μ^(T-t-1)`` times.
    """

    fractions: Tensor
    shares: Tensor


def training_path(leak: Leak, most: int = 5) -> Path:
    """The path of a client's steps, thinned to at most ``most`` points; one point for a gradient.

    A message that was clipped or normalised does not say how far its client went: one point, too.
    """
    unknown = leak.normalised or leak.clip_norm is not None or leak.noise_std is not None
    steps = 1 if leak.kind == "gradient" or unknown else leak.steps
    weights = torch.arange(1, steps + 1, dtype=torch.float64)
    grown = (1 - leak.momentum**weights) / (1 - leak.momentum)
    position = torch.cat([torch.zeros(1, dtype=torch.float64), grown.cumsum(0)])[:-1] / grown.sum()
    shares = grown.flip(0) / grown.sum()
    groups = torch.arange(steps).chunk(min(most, steps))
    share = torch.stack([shares[group].sum() for group in groups])
    where = torch.stack([(shares[group] * position[group]).sum() for group in groups]) / share
    return Path(where, share)


def moved(model: nn.Module, leak: Leak, fraction: float) -> nn.Module:
    """A copy of the model, moved by ``fraction`` of an update towards its end."""
    model = copy.deepcopy(model)
    if fraction == 0 or leak.kind == "gradient":
        return model
    row = flatten(model)
    parts = unflatten(torch.zeros_like(row), model)
    for name, value in leak.values.items():
        parts[name] = value.to(row)
    load_row(
        model, row + fraction * torch.cat([part.reshape(-1).to(row) for part in parts.values()])
    )
    return model
