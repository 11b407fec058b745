"""The message of guessed pictures: the client's own computation, as a differentiable function.

One gradient, all local steps one by one (unrolled), or the aggregate of many clients; clipped or
normalised as the protocol says. Chapters 03 and 06.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from flcourse.attacks.types import Leak, task_loss

Values = tuple[Tensor, ...]
Gradient = Callable[[Callable[..., Tensor], Values, Tensor, Tensor], Values]


class Client:
    """The message of guessed pictures, in units of a gradient, as a differentiable function.

    ``names`` are the parameters of the message, ``start`` their broadcast values. With ``unroll``
    the local steps are computed one by one; else the message is the gradient at ``start``. Where an
    epoch has several batches their order is unknown: the guess takes pictures as they come, in the
    same order every epoch (in the first this loses nothing: the order of a batch is free).
    """

    def __init__(self, model: nn.Module, leak: Leak, *, unroll: bool) -> None:
        self.model = _worker(model, leak)
        self.names = tuple(leak.gradients)
        self.leak, self.unroll = leak, unroll and leak.steps > 1
        parameters = dict(self.model.named_parameters())
        _check_names(parameters, leak)
        self.start: Values = tuple(parameters[name].detach() for name in self.names)
        like = self.start[0]
        with torch.no_grad():
            probe = torch.full((2, *leak.image_shape), 0.5, device=like.device, dtype=like.dtype)
            self.num_outputs = int(self.model(probe).shape[1])

    def loss(self, weights: Values, images: Tensor, targets: Tensor) -> Tensor:
        """The mean training loss of a batch with target probabilities ``[b, k]``."""
        values = dict(zip(self.names, weights, strict=True))
        outputs = functional_call(self.model, values, (images,))
        return task_loss(outputs, targets).mean()

    def predicted(self, images: Tensor, targets: Tensor, gradient: Gradient) -> Values:
        """The message of ``[b, *shape]`` pictures with targets ``[b, k]``, by parameter."""
        leak = self.leak
        apart = leak.normalised or leak.clip_norm is not None or self.unroll
        if leak.num_clients == 1 or not apart:
            return self._defended(self._local(images, targets, gradient))
        parts = zip(
            images.tensor_split(leak.num_clients),
            targets.tensor_split(leak.num_clients),
            strict=True,
        )
        shares, messages = [], []
        for own, own_targets in parts:
            shares.append(len(own) / len(images))
            messages.append(self._defended(self._local(own, own_targets, gradient)))
        return tuple(
            sum(
                (share * value for share, value in zip(shares, values, strict=True)),
                torch.zeros(()),
            )
            for values in zip(*messages, strict=True)
        )

    def _local(self, images: Tensor, targets: Tensor, gradient: Gradient) -> Values:
        if not self.unroll:
            return gradient(self.loss, self.start, images, targets)
        leak, weights, velocity = self.leak, self.start, None
        assert leak.lr is not None
        for _ in range(leak.epochs):
            size = leak.local_batch_size or len(images)
            for part, goal in zip(images.split(size), targets.split(size), strict=True):
                step = gradient(self.loss, weights, part, goal)
                if velocity is not None:
                    step = tuple(leak.momentum * v + s for v, s in zip(velocity, step, strict=True))
                velocity = step if leak.momentum else None
                weights = tuple(w - leak.lr * s for w, s in zip(weights, step, strict=True))
        moved = zip(weights, self.start, strict=True)
        return tuple((now - before) / leak.scale for now, before in moved)

    def _defended(self, message: Values) -> Values:
        """What each client does to its message before it sends it: clip it, or scale it to one."""
        leak = self.leak
        if leak.clip_norm is None and not leak.normalised:
            return message
        norm = torch.stack([value.square().sum() for value in message]).sum().sqrt()
        if leak.normalised:
            return tuple(value / norm for value in message)
        assert leak.clip_norm is not None
        factor = (leak.clip_norm / abs(leak.scale) / norm).clamp(max=1)
        return tuple(value * factor for value in message)


def graph_gradient(
    loss: Callable[..., Tensor], weights: Values, images: Tensor, targets: Tensor
) -> Values:
    """The gradient with its graph, by plain autograd: works for every module."""
    leaves = tuple(w if w.requires_grad else w.requires_grad_() for w in weights)
    value = loss(leaves, images, targets)
    return torch.autograd.grad(
        value, leaves, create_graph=True, allow_unused=True, materialize_grads=True
    )


def function_gradient(
    loss: Callable[..., Tensor], weights: Values, images: Tensor, targets: Tensor
) -> Values:
    """The same as a function, so that ``vmap`` can batch it over restarts."""
    result: Values = grad(loss)(weights, images, targets)
    return result


def _worker(model: nn.Module, leak: Leak) -> nn.Module:
    """A copy in the client's mode, whose forward pass changes nothing and draws nothing.

    Clients train in training mode, so BatchNorm uses the batch (and keeps no running statistics
    here); the masks of dropout are unknown, so the guess goes without.
    """
    worker = copy.deepcopy(model)
    if leak.kind == "update":
        worker.train()
    for module in worker.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return worker.requires_grad_(False)


def _check_names(parameters: Mapping[str, Tensor], leak: Leak) -> None:
    for name, value in leak.gradients.items():
        if name not in parameters:
            raise ValueError(
                f"the leak holds {name!r}, which the model does not have: give the model "
                f"that was broadcast, with parameters {', '.join(parameters)}"
            )
        if parameters[name].shape != value.shape:
            raise ValueError(
                f"{name} is {list(value.shape)} in the leak and {list(parameters[name].shape)} "
                "in the model: give the model that was broadcast"
            )
