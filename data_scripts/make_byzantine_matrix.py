"""Make the stored result `byzantine_matrix`: every lie against every rule.

    python data_scripts/make_byzantine_matrix.py        # about 25 minutes on one core

Digits, MLP 64-64-10, n = 20 clients of which f = 4 lie, ten rounds of five epochs; Dirichlet(0.5)
and IID, five seeds. Each cell has the accuracy and the cosine of every seed (None: the rule is not
defined). Chapter 16 shows it and recomputes a part of it.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from flcourse.byzantine.matrix import STANDARD_ATTACKS as ATTACKS
from flcourse.byzantine.matrix import STANDARD_RULES as RULES
from flcourse.byzantine.matrix import Cell, run_cell, run_matrix
from flcourse.byzantine.setting import Setting
from flcourse.claims import save_stored

SEEDS = (0, 1, 2, 3, 4)
PARTITIONS = ("dirichlet", "iid")
SETTING = Setting()


def setting(partition: str) -> Setting:
    return replace(SETTING, partition=partition)


def cell(partition: str, attack: str, rule: str, seed: int) -> Cell:
    return run_cell(attack, rule, setting(partition), seed)


def kept(cells: list[Cell]) -> dict[str, Any]:
    """What is stored of one attack and rule: a value for each seed."""
    stopped = [cell.stopped for cell in cells if cell.stopped]
    return {
        "accuracy": [cell.accuracy for cell in cells],
        "cosine": [round(cell.cosine, 3) for cell in cells],
    } | ({"stopped": stopped[0]} if stopped else {})


def block(partition: str) -> dict[str, dict[str, Any]]:
    """Every attack × rule of one partition."""
    found: dict[str, dict[str, list[Cell]]] = {attack: {} for attack in ATTACKS}
    for attack, rule, seed, cell in run_matrix(ATTACKS, RULES, setting(partition), SEEDS):
        if cell is not None:
            found[attack].setdefault(rule, []).append(cell)
            print(
                partition, attack, rule, seed, f"{cell.accuracy:.3f} {cell.cosine:.3f}", flush=True
            )
    return {
        attack: {rule: kept(cells) for rule, cells in row.items()} for attack, row in found.items()
    }


def main() -> None:
    config = {"seeds": SEEDS, "attacks": ATTACKS, "rules": RULES, "setting": asdict(SETTING)}
    results = {partition: block(partition) for partition in PARTITIONS}
    print(save_stored("byzantine_matrix", config=config, results=results))


if __name__ == "__main__":
    main()
