"""Make the stored result `fedavg_variations`: what unevenness costs, and what small changes do.

    python data_scripts/make_fedavg_variations.py        # about 3 minutes on one core

Glyphs, MLP 784-64-10, 10 clients, 20 rounds of one epoch, batch 32, learning rate 0.05; IID and
Dirichlet(0.1), and Dirichlet for other α; five seeds. Chapter 01 shows it and recomputes one cell.
"""

from __future__ import annotations

from typing import Any

from flcourse.claims import save_stored
from flcourse.data import load_dataset, partition
from flcourse.fedavg import History, train
from flcourse.models import MLP
from flcourse.runtime import progress

SEEDS = (0, 1, 2, 3, 4)
NUM_CLIENTS, ROUNDS = 10, 20
ALPHAS = (0.05, 0.1, 0.3, 1.0, 10.0)
CHANGES: dict[str, dict[str, float]] = {
    "plain": {},
    "FedProx, μ = 0.1": {"proximal": 0.1},
    "FedProx, μ = 1": {"proximal": 1.0},
    "server step doubled": {"server_lr": 2.0},
    "server momentum, β = 0.5": {"server_momentum": 0.5},
    "one client a round": {"fraction": 0.1},
}


def cell(how: str, seed: int, alpha: float = 0.1, **options: Any) -> History:
    """One run of the setting above, with some options changed."""
    train_set, test = load_dataset("glyphs")
    clients = partition(train_set, how, NUM_CLIENTS, alpha=alpha, seed=seed)
    return train(MLP(seed=seed), clients, test, rounds=ROUNDS, seed=seed, **options)


def main() -> None:
    settings: dict[str, tuple[str, dict[str, float]]] = {
        f"{how}, {name}": (how, options)
        for how in ("iid", "dirichlet")
        for name, options in CHANGES.items()
    }
    settings |= {f"alpha={alpha:g}": ("dirichlet", {"alpha": alpha}) for alpha in ALPHAS}
    results = {}
    for name, (how, options) in progress(settings.items(), "settings", total=len(settings)):
        results[name] = [cell(how, seed, **options).accuracy[-1] for seed in SEEDS]
    config = {
        "seeds": SEEDS,
        "num_clients": NUM_CLIENTS,
        "rounds": ROUNDS,
        "alphas": ALPHAS,
        "changes": CHANGES,
        "data": "glyphs",
        "model": "MLP",
    }
    print(save_stored("fedavg_variations", config=config, results=results))


if __name__ == "__main__":
    main()
