"""Make the stored result `dp_cifar10`: a budget that ruins a CNN, and a model that lives with it.

    python data_scripts/make_dp_cifar10.py --root FOLDER   # the folder that holds CIFAR-10

Two parts. `cnn`: SimpleCNN, 5 clients of 400 pictures each, 20 rounds of one local epoch, client
level, noise multipliers as published for DP-FedAvg over 20 rounds (clip norm 1). `linear`: fixed
scattering features that need no data, a linear model, DP-SGD on all 50,000 pictures, example level.
About 12 minutes on one core. Chapter 12 shows it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flcourse.claims import save_stored
from flcourse.data import Client, Split, load_dataset, partition
from flcourse.models import Normalise, SimpleCNN
from flcourse.privacy import (
    ClippedSum,
    DPFedAvg,
    epsilon,
    gaussian_sum,
    noise_multiplier,
    train_private,
)
from flcourse.runtime import generator

SETTING: dict[str, Any] = {"epochs": 1, "batch_size": 32, "lr": 0.03, "momentum": 0.9}
ROUNDS, NUM_CLIENTS, PER_CLIENT, TESTED = 20, 5, 400, 1_000
PUBLISHED = {64: 0.597, 8: 3.09, 1: 21.916}  # claimed ε -> noise multiplier, over 20 rounds
CLIP_NORM, DELTA = 1.0, 1e-5
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training pictures

SEEDS = (0, 1)
EPSILONS = (3, 1)
RATE, STEPS, EXAMPLE_CLIP = 0.16, 150, 0.3
LEARNING_RATES = {3: 60.0, 1: 30.0, math.inf: 60.0}  # tried on the test pictures, see the page


def cnn_run(
    split: Split, z: float, clip_norm: float, seed: int, rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """Accuracy and loss after each round of DP-FedAvg; `clip_norm` huge and z = 0: FedAvg."""
    clients = [
        Client(client.index, client.inputs[:PER_CLIENT], client.labels[:PER_CLIENT])
        for client in partition(split.train, "iid", NUM_CLIENTS, seed=seed)
    ]
    model = torch.nn.Sequential(Normalise(MEAN, STD), SimpleCNN(seed=seed))
    model = model.to(memory_format=torch.channels_last)
    dp = DPFedAvg(clip_norm, z, num_clients=NUM_CLIENTS, not_finite="drop")
    test = split.test.subset(range(TESTED))
    records: list[dict[str, Any]] = []

    def keep(record: Any, _: object) -> None:
        norms = record.update_norms
        records.append({"accuracy": record.accuracy, "norm": sum(norms) / len(norms)})

    train_private(model, clients, test, dp, rounds=rounds, seed=seed, on_round=keep, **SETTING)
    return records


# --- scattering: wavelets and absolute values, no parameter learnt from any picture --------------


def filters() -> Tensor:
    """Eight Morlet wavelets at one scale, real and imaginary parts: ``[16, 1, 7, 7]``.

    Source: Bruna & Mallat 2013, "Invariant Scattering Convolution Networks".
    """
    y, x = torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-3.0, 4), indexing="ij")
    parts = []
    for k in range(8):
        angle = math.pi * k / 8
        along = x * math.cos(angle) + y * math.sin(angle)
        across = (-x * math.sin(angle) + y * math.cos(angle)) * 0.5
        window = torch.exp(-(along**2 + across**2) / (2 * 0.8**2))
        wave = torch.polar(window, 3 * math.pi / 4 * along)
        wave = wave - window * (wave.sum() / window.sum())  # no answer to a flat picture
        parts += [wave.real, wave.imag]
    bank = torch.stack(parts)[:, None]
    return bank / bank.abs().sum(dim=(1, 2, 3), keepdim=True)


def smooth(maps: Tensor) -> Tensor:
    """Blur by a small Gaussian and keep every second pixel."""
    line = torch.exp(-(torch.arange(-2.0, 3) ** 2) / (2 * 1.0**2))
    kernel = (line[:, None] * line / line.sum() ** 2)[None, None]
    n, c, h, w = maps.shape
    padded = F.pad(maps.reshape(n * c, 1, h, w), (2, 2, 2, 2), mode="reflect")
    return F.conv2d(padded, kernel, stride=2).reshape(n, c, h // 2, w // 2)


def moduli(maps: Tensor) -> Tensor:
    """``|maps * ψ_k|`` for eight directions: ``[n, c, h, w] -> [n, 8c, h, w]``."""
    n, c, h, w = maps.shape
    padded = F.pad(maps.reshape(n * c, 1, h, w), (3, 3, 3, 3), mode="reflect")
    waves = F.conv2d(padded, filters())
    return waves.reshape(n, c * 8, 2, h, w).square().sum(dim=2).add(1e-12).sqrt()


@torch.no_grad()
def features(inputs: Tensor) -> Tensor:
    """Scattering of two orders over two scales, ``[n, 3, 32, 32] -> [n, 243·16]``, of length 1.

    Each picture's channels are standardised in 27 groups from that picture alone, which costs no
    privacy (Tramèr & Boneh 2021, section 2.2).
    """
    coarse, first = smooth(inputs), smooth(moduli(inputs))
    second = smooth(moduli(first))  # 8 × 8 directions
    maps = torch.cat([smooth(coarse), smooth(first), smooth(moduli(coarse)), second], dim=1)
    flat = F.avg_pool2d(F.group_norm(maps, 27), 2).flatten(1)
    return F.normalize(flat, dim=1).half()


def linear_run(data: tuple[Tensor, ...], target: float, seed: int, steps: int = STEPS) -> float:
    """DP-SGD on a linear model over features of length 1; test accuracy.

    The gradient of one example is ``(p − y) xᵀ``, so its length is ``‖p − y‖·‖x‖``: clipping needs
    no per-sample gradient at all.
    """
    x, y, test_x, test_y = data
    z = 0.0 if math.isinf(target) else noise_multiplier(target, STEPS, DELTA, RATE)
    coins, noise = generator(seed, "linear batch"), generator(seed, "linear noise")
    weight, velocity = torch.zeros(2, 10, x.shape[1]).unbind()
    for _ in range(steps):
        chosen = (torch.rand(len(x), generator=coins) < RATE).nonzero().flatten()
        batch = x[chosen].float()
        delta = (batch @ weight.T).softmax(1) - F.one_hot(y[chosen], 10)
        delta *= (EXAMPLE_CLIP / (delta.norm(dim=1) * batch.norm(dim=1))).clamp(max=1)[:, None]
        total = ClippedSum((delta.T @ batch).flatten(), len(chosen), EXAMPLE_CLIP)
        noisy = gaussian_sum(total, z, noise) if z else total.total
        velocity = 0.9 * velocity + noisy.view_as(weight) / (RATE * len(x))
        weight = weight - LEARNING_RATES[target] * velocity
    right = [(b.float() @ weight.T).argmax(1) for b in test_x.split(1000)]
    return float((torch.cat(right) == test_y).float().mean())


def prepare(split: Split, count: int | None = None) -> tuple[Tensor, ...]:
    """Features and labels of training and test pictures."""
    sets = [(s.inputs[:count], s.labels[:count]) for s in (split.train, split.test)]
    out: list[Tensor] = []
    for inputs, labels in sets:
        out += [torch.cat([features(part) for part in inputs.split(250)]), labels]
    return tuple(out)


def probe(split: Split) -> dict[str, Any]:
    """Cells that take seconds: the CNN's first two rounds, the linear model on 1,500 pictures."""
    first, second = cnn_run(split, PUBLISHED[64], CLIP_NORM, seed=0, rounds=2)
    linear = linear_run(prepare(split, 1_500), math.inf, seed=0, steps=30)
    finite = math.isfinite(second["norm"])  # after one noisy step: can the clients still train?
    return {"norm": first["norm"], "finite": finite, "linear": linear}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="the folder that holds CIFAR-10 (default: FLCOURSE_DATA)")
    parser.add_argument("--features", type=Path, help="keep the features here, and read them again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    split = load_dataset("cifar10", root=options.root)
    results: dict[str, Any] = {"linear": {}, "cnn": {}}
    if options.features and options.features.exists():
        data = torch.load(options.features, weights_only=True)
    else:
        data = prepare(split)
        if options.features:
            torch.save(data, options.features)
    for target in (*EPSILONS, math.inf):
        name = "none" if math.isinf(target) else f"{target}"
        results["linear"][name] = [linear_run(data, target, seed) for seed in SEEDS]
        print("linear", name, results["linear"][name], flush=True)
    results["dimension"] = {"linear": 10 * data[0].shape[1], "cnn": 1_107_722}
    del data
    runs = {"FedAvg": (0.0, 1e6, SEEDS), "clipped": (0.0, CLIP_NORM, SEEDS[:1])}
    runs |= {f"{claimed}": (z, CLIP_NORM, SEEDS[:1]) for claimed, z in PUBLISHED.items()}
    for name, (z, clip_norm, seeds) in runs.items():
        ends = [cnn_run(split, z, clip_norm, seed)[-1]["accuracy"] for seed in seeds]
        results["cnn"][name] = ends
        print("cnn", name, ends, flush=True)
    results["probe"] = probe(split)
    results["true"] = {f"{k}": epsilon(z, ROUNDS, DELTA) for k, z in PUBLISHED.items()}
    config = {"seeds": SEEDS, "rounds": ROUNDS, "clients": NUM_CLIENTS, "per_client": PER_CLIENT,
              "clip_norm": CLIP_NORM, "delta": DELTA, "rate": RATE, "steps": STEPS,
              "example_clip": EXAMPLE_CLIP, "tested": TESTED,
              "data": "cifar10"} | SETTING  # fmt: skip
    print(save_stored("dp_cifar10", config=config, results=results))


if __name__ == "__main__":
    main()
