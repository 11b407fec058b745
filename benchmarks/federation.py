"""The clients that all competitors train: the same samples, model and settings for each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from flcourse.data import Client, load_dataset, partition
from flcourse.models import MLP, LightCNN


@dataclass(frozen=True)
class Setting:
    """One federation; `samples` is what each client holds."""

    model: str
    num_clients: int
    samples: int
    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.05
    seed: int = 0


def make_clients(setting: Setting) -> list[Client]:
    """Glyphs, dealt at random: `num_clients` clients with `samples` samples each."""
    train, _ = load_dataset("glyphs", num_train=setting.num_clients * setting.samples, num_test=1)
    return partition(train, "iid", setting.num_clients, seed=setting.seed)


def make_model(setting: Setting) -> nn.Module:
    """The start that all competitors share."""
    return {"MLP": MLP, "LightCNN": LightCNN}[setting.model](seed=setting.seed)
