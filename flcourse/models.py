"""The networks of the course. Each takes ``seed``: the same seed gives the same weights anywhere.

Where a network wants other units than pixels in [0, 1], ``Normalise`` is its first layer, so that
a clamp on pixels can never happen in the wrong space. Explained in chapters 01 and 03.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flcourse.runtime import seeded

_BITS = np.uint64(2**32 - 1)


class Normalise(nn.Module):
    """``(x - mean) / std`` per channel ``[c]`` of pictures, or per feature ``[f]`` of tables.

    The constants move with the model but are neither parameters nor buffers: they are public
    preprocessing, not something that is trained or shared, so they are not in a model's row.
    Raises ``ValueError`` if ``mean`` and ``std`` differ in length, a ``std`` is not positive, or an
    input is not floating point or has another number of channels.
    """

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.mean = torch.as_tensor(mean, dtype=torch.float32)
        self.std = torch.as_tensor(std, dtype=torch.float32)
        if self.mean.shape != self.std.shape or self.mean.dim() != 1:
            raise ValueError(
                f"mean and std must be lists of one length, got shapes {list(self.mean.shape)} "
                f"and {list(self.std.shape)}"
            )
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive, got {self.std.tolist()}")

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.shape[1] != len(self.mean):
            raise ValueError(
                f"Normalise has {len(self.mean)} channels and wants floating point, got {x.dtype} "
                f"of shape {list(x.shape)}"
            )
        shape = (-1,) + (1,) * (x.dim() - 2)
        return (x - self.mean.to(x).reshape(shape)) / self.std.to(x).reshape(shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Normalise:
        super()._apply(fn, recurse)
        self.mean, self.std = fn(self.mean), fn(self.std)
        return self


class Logistic(nn.Sequential):
    """Multinomial logistic regression on a flattened input: one linear layer."""

    def __init__(self, num_features: int, num_classes: int, *, seed: int = 0) -> None:
        with seeded(seed, "Logistic"):
            super().__init__(nn.Flatten(), nn.Linear(num_features, num_classes))


class MLP(nn.Sequential):
    """One hidden ReLU layer; 784-64-10 (50,890 parameters) is the course's default for training."""

    def __init__(
        self, num_features: int = 784, hidden: int = 64, num_classes: int = 10, *, seed: int = 0
    ) -> None:
        with seeded(seed, "MLP"):
            super().__init__(
                nn.Flatten(),
                nn.Linear(num_features, hidden),
                nn.ReLU(),
                nn.Linear(hidden, num_classes),
            )


class LightCNN(nn.Sequential):
    """Two strided 5×5 convolutions (12, 24 channels), one linear layer; 19,306 parameters."""

    def __init__(
        self, num_classes: int = 10, channels: int = 1, image_size: int = 28, *, seed: int = 0
    ) -> None:
        side = -(-image_size // 4)
        with seeded(seed, "LightCNN"):
            super().__init__(
                nn.Conv2d(channels, 12, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(12, 24, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(24 * side * side, num_classes),
            )


class LeNet(nn.Sequential):
    """The network that DLG attacks: three 5×5 convolutions, 12 channels, strides 2, 2, 1.

    Weights and biases are uniform in (-0.5, 0.5), as the attack's authors have it: with the usual
    smaller start, sigmoids in a row make gradients too small to match.
    Source: Zhu, Liu & Han 2019, "Deep Leakage from Gradients", section 4. Chapter 03.
    """

    def __init__(
        self,
        num_classes: int = 100,
        channels: int = 3,
        image_size: int = 32,
        activation: Callable[[], nn.Module] = nn.Sigmoid,
        *,
        seed: int = 0,
    ) -> None:
        side = -(-image_size // 4)
        with seeded(seed, "LeNet"):
            super().__init__(
                nn.Conv2d(channels, 12, 5, stride=2, padding=2),
                activation(),
                nn.Conv2d(12, 12, 5, stride=2, padding=2),
                activation(),
                nn.Conv2d(12, 12, 5, stride=1, padding=2),
                activation(),
                nn.Flatten(),
                nn.Linear(12 * side * side, num_classes),
            )
            uniform_(self, 0.5)


class SimpleCNN(nn.Sequential):
    """Convolutions of 32, 64, 64 channels, two max-pools, two linear layers.

    1,107,722 parameters at 3×32×32 and ten classes. Used for CIFAR-10.
    """

    def __init__(
        self, num_classes: int = 10, channels: int = 3, image_size: int = 32, *, seed: int = 0
    ) -> None:
        side = image_size // 4
        with seeded(seed, "SimpleCNN"):
            super().__init__(
                nn.Conv2d(channels, 32, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(64, 64, 3, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(64 * side * side, 256),
                nn.ReLU(),
                nn.Linear(256, num_classes),
            )


class NextToken(nn.Module):
    """A small next-token model: embedding, mean over the context, tanh layer, logits.

    Input: int64 tokens ``[b, length]``; output: logits ``[b, vocabulary]``. Chapter 08.
    """

    def __init__(self, vocabulary: int, width: int = 64, *, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed, "NextToken"):
            self.embedding = nn.Embedding(vocabulary, width)
            self.hidden = nn.Linear(width, width)
            self.out = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        context = self.embedding(tokens).mean(dim=1)
        logits: Tensor = self.out(torch.tanh(self.hidden(context)))
        return logits


@torch.no_grad()
def uniform_(model: nn.Module, bound: float) -> None:
    """Fill every parameter from uniform(-bound, bound), in the order of the module, in place."""
    for parameter in model.parameters():
        parameter.uniform_(-bound, bound)


@torch.no_grad()
def mulberry_(model: nn.Module, seed: int) -> None:
    """Fill every parameter from uniform(-0.5, 0.5) by a generator of six lines, in place.

    Mulberry32: a counter of 32 bits, stirred twice; each value is a multiple of 2⁻²⁴, which float32
    holds exactly. So another language that has the six lines draws the very same weights: the page
    that attacks a reader's own picture does (``assets/attack.js``). Not for secrets, nor for
    simulations: 2³² states. Raises ``ValueError`` for a seed outside 0 to 2³² - 1.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} must lie in 0 to 2**32 - 1")
    state = np.uint64(seed) + np.uint64(0x6D2B79F5) * np.arange(
        1, sum(p.numel() for p in model.parameters()) + 1, dtype=np.uint64
    )
    t = state & _BITS
    t = ((t ^ (t >> np.uint64(15))) * (t | np.uint64(1))) & _BITS
    t ^= (t + (((t ^ (t >> np.uint64(7))) * (t | np.uint64(61))) & _BITS)) & _BITS
    bits = t ^ (t >> np.uint64(14))
    values = torch.from_numpy((bits >> np.uint64(8)).astype(np.float64) / 2**24 - 0.5)
    sizes = [parameter.numel() for parameter in model.parameters()]
    for parameter, part in zip(model.parameters(), values.split(sizes), strict=True):
        parameter.copy_(part.reshape(parameter.shape))
