"""The clients that all competitors train: the same samples, model and settings for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
    dtype: str = "float32"


def make_clients(setting: Setting) -> list[Client]:
    """Glyphs, dealt at random: `num_clients` clients with `samples` samples each."""
    train, _ = load_dataset("glyphs", num_train=setting.num_clients * setting.samples, num_test=1)
    dtype = getattr(torch, setting.dtype)
    return [
        Client(client.index, client.inputs.to(dtype), client.labels)
        for client in partition(train, "iid", setting.num_clients, seed=setting.seed)
    ]


def make_model(setting: Setting) -> nn.Module:
    """The start that all competitors share."""
    model = {"MLP": MLP, "LightCNN": LightCNN}[setting.model](seed=setting.seed)
    return model.to(getattr(torch, setting.dtype))
