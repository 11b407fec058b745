"""Make the stored result `label_counts`: the labels of a batch, counted while a model is trained.

    python data_scripts/make_label_counts.py        # about 2 minutes on one core

Glyphs, MLP 784-64-10, 10 clients, one epoch a round, batch 32, learning rate 0.05; IID and
Dirichlet(0.1); three seeds. After some rounds a client sends the gradient of a batch of its own
training data, ten batches a seed. A value is the share of labels counted right, as multisets.
Chapter 04 shows it and counts one cell again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flcourse.attacks.counts import to_counts
from flcourse.attacks.labels import infer_labels
from flcourse.attacks.observe import observe_gradient
from flcourse.claims import save_stored
from flcourse.data import Client, load_dataset, partition
from flcourse.fedavg import train
from flcourse.models import MLP
from flcourse.runtime import generator, progress
from flcourse.vectors import flatten, load_row

SEEDS = (0, 1, 2)
ROUNDS = (0, 2, 5, 10, 20, 50)
SIZES = (2, 8, 32)
HOWS = ("iid", "dirichlet")
BATCHES = 10
NUM_PUBLIC = 500  # test digits: other people's
METHODS = ("equal shares", "uniform mean", "no data", "other people's data", "true mean")


def rounds_of(how: str, seed: int, last: int = ROUNDS[-1]) -> tuple[list[Client], dict[int, MLP]]:
    """The clients of a federation, and its model after each of ``ROUNDS`` up to ``last``."""
    train_set, test = load_dataset("glyphs")
    clients = partition(train_set, how, 10, alpha=0.1, seed=seed)
    model = MLP(seed=seed)
    rows = {0: flatten(model)}
    if last:
        train(model, clients, test, rounds=last, seed=seed,
              on_round=lambda record, at: rows.update({record.round: at.row}))  # fmt: skip
    models = {}
    for number in [number for number in ROUNDS if number <= last]:
        models[number] = MLP()
        load_row(models[number], rows[number])
    return clients, models


def batches(
    clients: list[Client], size: int, seed: int, count: int = BATCHES
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one client each, among those that hold enough samples."""
    draw = generator(seed, "label counts", size)
    large = [client for client in clients if len(client) >= size]
    for _ in range(count):
        client = large[int(torch.randint(len(large), (1,), generator=draw))]
        chosen = torch.randperm(len(client), generator=draw)[:size]
        yield client.inputs[chosen], client.labels[chosen]


def counted(
    model: nn.Module, images: Tensor, labels: Tensor, public: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """The share of labels that each way of counting gets right."""
    leak = observe_gradient(model, images, labels)
    bias, size = leak.values["3.bias"], len(labels)
    with torch.no_grad():
        mean = model(images).softmax(1).mean(0)
    counts = {
        "equal shares": to_counts(torch.full((10,), size / 10), size),
        "uniform mean": to_counts(size * (0.1 - bias), size),
        "no data": infer_labels(model, leak).counts,
        "other people's data": infer_labels(model, leak, public=public).counts,
        "true mean": to_counts(size * (mean - bias), size),
    }
    truth = labels.bincount(minlength=10)
    return {
        name: int(torch.minimum(found.cpu(), truth).sum()) / size for name, found in counts.items()
    }


def main() -> None:
    results: dict[str, dict[str, list[float]]] = {}
    test = load_dataset("glyphs").test
    public = test.inputs[:NUM_PUBLIC], test.labels[:NUM_PUBLIC]
    settings = [(how, seed) for how in HOWS for seed in SEEDS]
    for how, seed in progress(settings, "federations", total=len(settings)):
        clients, models = rounds_of(how, seed)
        for number, model in models.items():
            for size in SIZES:
                found = [counted(model, *batch, public) for batch in batches(clients, size, seed)]
                cell = results.setdefault(f"{how} B={size} round={number}", {})
                for name in METHODS:
                    mean = sum(one[name] for one in found) / len(found)
                    cell.setdefault(name, []).append(mean)
    config = {
        "seeds": SEEDS,
        "rounds": ROUNDS,
        "batch_sizes": SIZES,
        "batches_per_seed": BATCHES,
        "public_samples": NUM_PUBLIC,
        "methods": METHODS,
        "data": "glyphs",
        "model": "MLP",
    }
    print(save_stored("label_counts", config=config, results=results))


if __name__ == "__main__":
    main()
