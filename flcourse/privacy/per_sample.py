"""The gradient of each sample on its own, written out with ``torch.func``. Chapter 12.

One backward pass gives the sum over a batch, which is too late to clip: ``vmap(grad(...))`` gives
each sample's gradient, at the price of a model's worth of memory for every sample in a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from flcourse.local import Loss, cross_entropy, per_sample
from flcourse.privacy.clipping import row_norms
from flcourse.vectors import layout


def per_sample_gradients(
    model: nn.Module, loss: Loss | None, inputs: Tensor, labels: Tensor
) -> Tensor:
    """``∇_w loss(model(x_i), y_i)`` of each sample: ``[b, ...], [b] -> [b, d]``.

    The columns are those of ``flatten(model)``; frozen parameters and buffers get zeros.
    ``loss(outputs, labels)`` gives one value per sample; ``None`` is cross-entropy.

    Raises ``ValueError`` for layers that mix the samples of a batch: there is no such gradient.
    """
    check_separable(model)
    found = gradients_by_name(model, loss or cross_entropy, inputs, labels)
    like = next(iter(found.values()))
    parts = [
        found[slot.name].reshape(len(inputs), -1)
        if slot.name in found
        else like.new_zeros(len(inputs), slot.size)
        for slot in layout(model)
    ]
    return torch.cat(parts, dim=1)


def clipped_by_vmap(
    model: nn.Module, loss: Loss, inputs: Tensor, labels: Tensor, clip_norm: float
) -> dict[str, Tensor]:
    """``Σ_i g_i · min(1, C/‖g_i‖)`` by parameter: name -> its shape."""
    return clip_and_add(gradients_by_name(model, loss, inputs, labels), clip_norm)


def clip_and_add(found: dict[str, Tensor], clip_norm: float) -> dict[str, Tensor]:
    """Per-sample gradients ``[b, *shape]`` by name, clipped as whole samples and added up."""
    flat = {name: part.flatten(1) for name, part in found.items()}
    norms = torch.stack([row_norms(part) for part in flat.values()]).norm(dim=0)
    factors = factors_of(norms, clip_norm)
    return {
        name: (factors.to(part) @ part).reshape(found[name].shape[1:])
        for name, part in flat.items()
    }


def gradients_by_name(
    model: nn.Module, loss: Loss, inputs: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Each sample's gradient by parameter: name -> ``[b, *shape]``, of what requires a gradient."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def one(parameters: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        outputs = functional_call(model, parameters, (sample[None],))
        return per_sample(loss, outputs, label[None])[0]

    found: dict[str, Tensor] = vmap(grad(one), in_dims=(None, 0, 0))(trained, inputs, labels)
    return found


def factors_of(norms: Tensor, clip_norm: float) -> Tensor:
    """``min(1, C/‖g_i‖)``, ``[b]``. Raises ``ValueError`` where a norm is NaN or infinite."""
    if not bool(torch.isfinite(norms).all()):
        bad = (~torch.isfinite(norms)).nonzero().flatten().tolist()
        raise ValueError(
            f"the gradients of samples {bad} are NaN or infinite, which clipping does not bound: "
            "lower lr, or leave these samples out"
        )
    return clip_norm / norms.clamp(min=clip_norm)


def check_separable(model: nn.Module) -> None:
    """Raise ``ValueError`` if a layer mixes the samples of a batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{name} is a {type(module).__name__}: it mixes the samples of a batch, so no "
                "gradient belongs to one of them; use GroupNorm"
            )
