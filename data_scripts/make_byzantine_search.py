"""Make the stored result `byzantine_search`: where do small lies cost the trimmed mean?

    python data_scripts/make_byzantine_search.py        # about 6 minutes on one core

The matrix's setting and variations of it, one thing changed at a time and two pairs; ALIE with its
own z and with z = 1.5, and min-max; three rules, three seeds. Chapter 16 shows it.
"""

from __future__ import annotations

from dataclasses import replace

from flcourse.byzantine import Setting, run_cell
from flcourse.claims import save_stored

SEEDS = (0, 1, 2)
BASE = Setting()
GLYPHS = replace(BASE, data_set="glyphs", num_train=1000)
SETTINGS = {
    "as in the matrix": BASE,
    "IID": replace(BASE, partition="iid"),
    "Dirichlet(0.1)": replace(BASE, alpha=0.1),
    "logistic regression": replace(BASE, model="logistic"),
    "30 rounds": replace(BASE, rounds=30),
    "one epoch a round": replace(BASE, epochs=1),
    "glyphs": GLYPHS,
    "f = 8": replace(BASE, num_byzantine=8),
    "f = 8, IID": replace(BASE, num_byzantine=8, partition="iid"),
    "f = 8, glyphs": replace(GLYPHS, num_byzantine=8),
}
ATTACKS = ("none", "alie", "alie:z=1.5", "min_max")
RULES = ("mean", "trimmed_mean", "nearest_neighbour_mixing+trimmed_mean")


def cell(name: str, attack: str, rule: str, seed: int) -> float:
    return run_cell(attack, rule, SETTINGS[name], seed).accuracy


def main() -> None:
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in SETTINGS:
        results[name] = {
            attack: {rule: [cell(name, attack, rule, seed) for seed in SEEDS] for rule in RULES}
            for attack in ATTACKS
        }
        print(name, results[name], flush=True)
    settings = {name: repr(setting) for name, setting in SETTINGS.items()}
    config = {"seeds": SEEDS, "settings": settings, "attacks": ATTACKS, "rules": RULES}
    print(save_stored("byzantine_search", config=config, results=results))


if __name__ == "__main__":
    main()
