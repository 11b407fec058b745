"""Make the stored result `fedavg_communication`: accuracy against megabytes for E = 1, 5, 20.

    python data_scripts/make_fedavg_communication.py        # about 10 minutes on one core

Glyphs, MLP 784-64-10, 10 clients, batch 32, learning rate 0.05; IID and Dirichlet(0.1); five seeds,
each with its own partition, start and order. Chapter 01 shows it and recomputes one cell.
"""

from __future__ import annotations

from typing import Any

from flcourse.claims import save_stored
from flcourse.data import load_dataset, partition
from flcourse.fedavg import History, train
from flcourse.models import MLP
from flcourse.runtime import progress

SEEDS = (0, 1, 2, 3, 4)
NUM_CLIENTS, ALPHA, BATCH_SIZE, LR = 10, 0.1, 32, 0.05
ROUNDS = {1: 60, 5: 30, 20: 24}  # local epochs -> rounds: longer where a round is cheap
PARTITIONS = ("iid", "dirichlet")


def cell(how: str, epochs: int, seed: int, rounds: int) -> History:
    """One run of the setting above."""
    train_set, test = load_dataset("glyphs")
    clients = partition(train_set, how, NUM_CLIENTS, alpha=ALPHA, seed=seed)
    return train(MLP(seed=seed), clients, test, rounds=rounds, epochs=epochs,
                 batch_size=BATCH_SIZE, lr=LR, seed=seed)  # fmt: skip


def main() -> None:
    jobs = [(how, epochs, seed) for how in PARTITIONS for epochs in ROUNDS for seed in SEEDS]
    results: dict[str, Any] = {}
    for how, epochs, seed in progress(jobs, "runs"):
        history = cell(how, epochs, seed, ROUNDS[epochs])
        entry = results.setdefault(f"{how} E={epochs}", {"accuracy": []})
        entry["accuracy"].append(history.accuracy)
        entry["megabytes"] = history.megabytes
    config = {
        "seeds": SEEDS,
        "num_clients": NUM_CLIENTS,
        "alpha": ALPHA,
        "batch_size": BATCH_SIZE,
        "lr": LR,
        "rounds": ROUNDS,
        "data": "glyphs",
        "model": "MLP",
    }
    print(save_stored("fedavg_communication", config=config, results=results))


if __name__ == "__main__":
    main()
