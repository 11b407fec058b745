"""Make the stored result `audited_training`: whole training runs, audited with one canary.

    python data_scripts/make_audited_training.py        # about 4 minutes on one core

DP-SGD of a linear model on ten handwritten digits, z = 2, q = 0.2, five steps. The canary is one
more example, a white picture labelled 0. Each trial is one training run; 400 with and 400 without
the canary choose the threshold, as many are counted. A value is the lower bound on ε at δ = 10⁻³
that one audit shows. Chapter 11 shows it and audits one cell again.
"""

from __future__ import annotations

import torch
from torch import nn

from flcourse.claims import save_stored
from flcourse.data import Client, load_dataset
from flcourse.models import Logistic
from flcourse.privacy import Audit, audit, epsilon, train_dpsgd, training_canary
from flcourse.runtime import progress

SEEDS = (0, 1, 2)
TRIALS = 400
Z, RATE, STEPS, DELTA = 2.0, 0.2, 5, 1e-3
VARIANTS: dict[str, dict[str, float]] = {
    "as written": {},
    "noise scale off": {"noise_multiplier": Z / 4},
    "clip missing": {"clip_norm": 100.0, "noise_multiplier": Z / 100},
    "sampling not done": {"sample_rate": 1.0},
}


def cell(variant: str, seed: int, trials: int = TRIALS) -> Audit:
    """One audit of DP-SGD with that mistake planted."""
    said = {"clip_norm": 1.0, "noise_multiplier": Z, "sample_rate": RATE}
    settings = said | VARIANTS[variant]

    def train(model: nn.Module, data: Client, seed: int) -> None:
        train_dpsgd(
            model, data, steps=STEPS, lr=0.1, expected_batch_size=2.0, seed=seed,
            method="ghost", **settings,
        )  # fmt: skip

    digits = load_dataset("digits").train
    data = Client(3, digits.inputs[:10], digits.labels[:10])
    canary = (torch.ones_like(digits.inputs[0]), torch.tensor(0))
    mechanism = training_canary(train, Logistic(64, 10, seed=0), data, canary)
    return audit(mechanism, delta=DELTA, trials=trials, seed=seed)


def main() -> None:
    claimed = epsilon(Z, STEPS, DELTA, RATE)
    results: dict[str, list[float]] = {}
    cells = [(variant, seed) for variant in VARIANTS for seed in SEEDS]
    for variant, seed in progress(cells, "audits", total=len(cells)):
        results.setdefault(variant, []).append(cell(variant, seed).epsilon_lower)
    config = {
        "seeds": SEEDS,
        "trials": TRIALS,
        "noise_multiplier": Z,
        "sample_rate": RATE,
        "steps": STEPS,
        "delta": DELTA,
        "claimed": claimed,
        "data": "ten of digits",
        "model": "Logistic",
    }
    print(save_stored("audited_training", config=config, results=results))


if __name__ == "__main__":
    main()
