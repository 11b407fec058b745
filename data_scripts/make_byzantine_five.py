"""Make the stored result `byzantine_five`: five clients, two liars, five rounds, on CIFAR-10.

    python data_scripts/make_byzantine_five.py --root DATA      # about 5 minutes on one core

The shape of a published comparison: 5 clients, 2 of them lie, 5 rounds; and one with 1 liar of 5
that is loud. LightCNN, 5,000 training pictures, IID, two seeds. Chapter 16 runs the
same on digits and shows this beside it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace

from flcourse.byzantine import Setting, run_cell
from flcourse.claims import save_stored

SEEDS = (0, 1)
SMALL = Setting(
    data_set="cifar10", num_train=5_000, num_clients=5, num_byzantine=2, partition="iid",
    model="light-cnn", rounds=5, epochs=2, batch_size=64, lr=0.1,
)  # fmt: skip
LOUD = replace(SMALL, num_byzantine=1)
# A tenth trimmed at either end of five rows is nobody: that trimmed mean is the mean.
PARTS = {
    "two quiet liars": (
        SMALL,
        ("none", "constant:value=0.01", "sign_flip", "suppression", "stealth_suppression"),
        ("mean", "coordinate_median"),
    ),
    "one loud liar": (
        LOUD,
        ("none", "sign_flip:scale=10"),
        ("mean", "trimmed_mean", "krum"),
    ),
}


def cell(part: str, attack: str, rule: str, seed: int, root: str | None) -> float:
    return run_cell(attack, rule, PARTS[part][0], seed, folder=root).accuracy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", help="folder of data sets (default: FLCOURSE_DATA)")
    root = parser.parse_args().root
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    for part, (_, attacks, rules) in PARTS.items():
        results[part] = {attack: {} for attack in attacks}
        for attack in attacks:
            for rule in rules:
                found = [cell(part, attack, rule, seed, root) for seed in SEEDS]
                results[part][attack][rule] = found
                print(part, attack, rule, results[part][attack][rule], flush=True)
    config = {"seeds": SEEDS, "settings": {p: asdict(s) for p, (s, _, _) in PARTS.items()}}
    print(save_stored("byzantine_five", config=config, results=results))


if __name__ == "__main__":
    main()
