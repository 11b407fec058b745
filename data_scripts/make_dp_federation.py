"""Make the stored result `dp_federation`: the same pictures and the same ε, from 10 to 10⁶ clients.

    python data_scripts/make_dp_federation.py        # about 8 minutes on one core

60,000 glyphs dealt to 10, 100, 1,000 and 6,000 clients, all of them really trained (five local
steps each time they are drawn), DP-FedAvg with the noise added once, client level. For 10⁴ to 10⁶
clients the cohorts of 6,000 are trained and the noise is scaled: its length in a step goes with
1/N, so that part is exact; what more data would teach is left out. Chapter 12 shows it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from flcourse.claims import save_stored
from flcourse.data import Client, Dataset, load_dataset, partition
from flcourse.models import MLP
from flcourse.privacy import DPFedAvg, noise_multiplier, train_private

TRAINED = {10: 1.0, 100: 0.5, 1_000: 0.1, 6_000: 0.05}  # clients -> sample rate
SCALED = (10_000, 100_000, 1_000_000)
EPSILONS = (math.inf, 8, 3, 1)
SEEDS = (0, 1, 2)
ROUNDS, LOCAL_STEPS, LR, CLIP_NORM = 40, 5, 0.2, 0.5


@functools.cache
def federation(num_clients: int) -> tuple[list[Client], Dataset]:
    """60,000 glyphs dealt to that many clients, and the test glyphs."""
    split = glyphs()
    return partition(split.train, "iid", num_clients, seed=0), split.test


@functools.cache
def glyphs() -> Any:
    """All 60,000 training glyphs."""
    return load_dataset("glyphs", num_train=60_000)


def delta(num_clients: int) -> float:
    """A tenth of one over the number of clients, at most 10⁻⁵."""
    return min(1e-5, 0.1 / num_clients)


def multiplier(num_clients: int, epsilon: float) -> float:
    """z for the whole run, 0 for ε = ∞."""
    if math.isinf(epsilon):
        return 0.0
    rate = TRAINED.get(num_clients, TRAINED[6_000])
    return noise_multiplier(epsilon, ROUNDS, delta(num_clients), rate)


def cell(num_clients: int, epsilon: float, seed: int, rounds: int = ROUNDS) -> list[float]:
    """Test accuracy after each round."""
    really = min(num_clients, 6_000)
    clients, test = federation(really)
    z = multiplier(num_clients, epsilon) * really / num_clients  # the noise that N clients get
    dp = DPFedAvg(CLIP_NORM, z, num_clients=really, sample_rate=TRAINED[really])
    batch = math.ceil(len(clients[0]) / LOCAL_STEPS)
    model = MLP(seed=seed)
    history = train_private(
        model, clients, test, dp, rounds=rounds, batch_size=batch, lr=LR, seed=seed
    )
    return history.accuracy


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for num_clients in (*TRAINED, *SCALED):
        for epsilon in EPSILONS:
            if num_clients in SCALED and math.isinf(epsilon):
                continue  # no noise: the run of 6,000
            seeds = SEEDS if num_clients in TRAINED else SEEDS[:1]
            runs = [cell(num_clients, epsilon, seed) for seed in seeds]
            name = f"N={num_clients} eps={'inf' if math.isinf(epsilon) else epsilon}"
            results[name] = {
                "accuracy": [run[-1] for run in runs],
                "first": runs[0][0],
                "z": multiplier(num_clients, epsilon),
            }
            print(name, results[name], flush=True)
    config = {"seeds": SEEDS, "rounds": ROUNDS, "local_steps": LOCAL_STEPS, "lr": LR,
              "clip_norm": CLIP_NORM, "delta": "min(1e-5, 0.1/N)", "rates": list(TRAINED.values()),
              "data": "glyphs, 60,000", "model": "MLP"}  # fmt: skip
    print(save_stored("dp_federation", config=config, results=results))


if __name__ == "__main__":
    main()
