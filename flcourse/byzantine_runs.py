"""Any part of the matrix of lies and rules: `python -m flcourse byzantine …` (chapter 16).

    --json FILE       configuration, every cell of every seed, versions, device
    --heatmap FILE    accuracy, lies down and rules across; beside it FILE-cosine

A file gets its name only when it is complete.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flcourse.runs import (
    MODELS,
    MOMENTUM,
    PARTITIONS,
    POSITIVE,
    Option,
    Refused,
    batch_size,
    name_in,
    whole,
)

if TYPE_CHECKING:  # torch takes seconds to import: `byzantine --help` does without
    from flcourse.byzantine import Cell, Setting

ALL = "all"
ATTACKS, RULES = ("none", "sign_flip:scale=5", "ipm:scale=0.5"), ("mean", "trimmed_mean", "krum")
GROUPS: dict[str, tuple[Option, ...]] = {
    "the federation": (
        Option("data-set", str, "digits", "NAME", "as in `data`"),
        Option("num-train", whole(1), None, "N", "use only so many training samples"),
        Option("clients", whole(1), 20, "N", "how many clients share the data"),
        Option("byzantine", whole(0), 4, "F", "how many of them lie"),
        Option("partition", str, "dirichlet:0.5", "HOW",
               f"{', '.join(PARTITIONS)}; dirichlet:A and quantity:A with their alpha"),
        Option("model", name_in(MODELS), "mlp", "NAME", ", ".join(MODELS)),
    ),
    "the training": (
        Option("rounds", whole(1), 10, "N", "rounds of communication"),
        Option("epochs", whole(1), 5, "E", "local passes over a client's own samples"),
        Option("batch-size", batch_size, 32, "B", "samples a step; 'all' or 0: all it holds"),
        Option("lr", POSITIVE, 0.3, "RATE", "the clients' learning rate"),
        Option("momentum", MOMENTUM, 0.0, "M", "the clients' momentum"),
        Option("seeds", whole(1), 1, "N", "runs of each cell: seeds 0 to N - 1"),
    ),
}  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `byzantine` to the course's command line."""
    parser = subparsers.add_parser(
        "byzantine",
        help="let clients lie, and try rules against it",
        description="Train with clients that lie, under rules that may stand it: every attack "
        "against every\nrule. Prints accuracy and, in brackets, the cosine of the step and the "
        "mean of the honest\nupdates, averaged over rounds.",
        epilog="an attack or a rule is NAME or NAME:OPTION=VALUE,...; a mixing stands before its "
        "rule, with a +\n"
        "examples:\n"
        "  python -m flcourse byzantine --list\n"
        "  python -m flcourse byzantine --attacks alie:z=1.5 min_max --rules mean krum bulyan\n"
        "  python -m flcourse byzantine --rules nearest_neighbour_mixing+trimmed_mean \\\n"
        "         --partition iid --seeds 5 --json mixing.json --heatmap mixing.png\n"
        "  python -m flcourse byzantine --attacks all --rules all     chapter 16's matrix\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("the matrix")
    for flag, default in (("attacks", ATTACKS), ("rules", RULES)):
        group.add_argument(
            f"--{flag}", nargs="+", default=list(default), metavar="NAME",
            help=f"'all', or some of --list (default {' '.join(default)})",
        )  # fmt: skip
    group.add_argument("--list", action="store_true", help="print the names, and stop")
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            shown = "" if option.default is None else f" (default {option.default})"
            group.add_argument(
                *option.spellings, dest=option.name, type=option.convert, metavar=option.metavar,
                default=option.default, help=option.help + shown,
            )  # fmt: skip
    group = parser.add_argument_group("the files")
    group.add_argument("--json", type=Path, metavar="FILE", help="all cells as JSON")
    group.add_argument(
        "--heatmap", type=Path, metavar="FILE", help="PNG of accuracies, and cosines"
    )
    group.add_argument("--overwrite", action="store_true", help="replace these files")
    group.add_argument("--root", type=Path, help="folder of data sets (default: FLCOURSE_DATA)")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the command; 0 when every cell is done."""
    try:
        if args.list:
            print(names())
            return 0
        for path in _files(args):
            if path.exists() and not args.overwrite:
                raise Refused(f"{path} is there already: choose another name, or use --overwrite")
        cells = _run_all(args)
        _write(args, cells)
    except ValueError as error:
        args.parser.error(str(error))
    except OSError as error:  # a data set is missing, a file cannot be written
        print(f"{args.parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def names() -> str:
    """Every attack with what it must know, every rule with what it stands, every mixing."""
    from flcourse.byzantine import ATTACKS as LIES
    from flcourse.byzantine import MIXINGS
    from flcourse.byzantine import RULES as KNOWN
    from flcourse.byzantine.matrix import LABEL_FLIP, NONE

    lines = ["attacks, and what the liars must know", f"  {NONE:26} nobody lies"]
    lines += [f"  {LABEL_FLIP:26} own samples"]
    lines += [f"  {name:26} {lie.knows}" for name, lie in LIES.items()]
    lines += ["rules, and when they stand f of n"]
    lines += [f"  {name:26} {rule.condition}" for name, rule in KNOWN.items()]
    lines += ["mixings, before a rule", *(f"  {name}" for name in MIXINGS)]
    return "\n".join(lines)


def setting_of(args: argparse.Namespace) -> Setting:
    """The setting of the options.

    Raises:
        Refused: for a partition that is none, or an alpha that is no number or has no effect.
    """
    from flcourse.byzantine import Setting

    how, _, alpha = args.partition.partition(":")
    if how not in PARTITIONS:
        raise Refused(f"--partition {args.partition}: use one of {', '.join(PARTITIONS)}")
    if alpha and how not in ("dirichlet", "quantity"):
        raise Refused(f"--partition {args.partition}: {how} has no alpha, leave :{alpha} out")
    try:
        spread = POSITIVE(alpha) if alpha else 0.5
    except argparse.ArgumentTypeError as error:
        raise Refused(f"--partition {args.partition}: {error}") from None
    chosen = {
        option.name: getattr(args, option.name)
        for options in GROUPS.values()
        for option in options
        if option.name not in ("byzantine", "partition", "seeds")
    }
    return Setting(**chosen, num_byzantine=args.byzantine, partition=how, alpha=spread)


def _run_all(args: argparse.Namespace) -> dict[tuple[str, str], list[Cell]]:
    from flcourse.byzantine import matrix

    setting, folder = setting_of(args), str(args.root) if args.root else None
    attacks = _expanded(args.attacks, matrix.STANDARD_ATTACKS)
    rules = _expanded(args.rules, matrix.STANDARD_RULES)
    os.environ.setdefault("FLCOURSE_PROGRESS", "0")  # a bar for each cell would drown the table
    for reason in matrix.check_names(attacks, rules, setting, folder=folder).values():
        print(f"{args.parser.prog}: {reason}; left out", file=sys.stderr)
    found: dict[tuple[str, str], list[Cell]] = {(a, r): [] for a in attacks for r in rules}
    for attack, rule, seed, cell in matrix.run_matrix(
        attacks, rules, setting, range(args.seeds), folder=folder
    ):
        if cell is not None:
            found[attack, rule].append(cell)
            if not args.quiet:
                print(sentence(attack, rule, seed, cell), flush=True)
    return found


def _expanded(given: Sequence[str], standard: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(standard if list(given) == [ALL] else given))


def sentence(attack: str, rule: str, seed: int, cell: Cell) -> str:
    """One cell in one line."""
    stopped = f"; stopped in {cell.stopped}" if cell.stopped else ""
    return (
        f"{attack} × {rule}, seed {seed}: accuracy {cell.accuracy:.1%} "
        f"(cosine {cell.cosine:.2f}){stopped}"
    )


def _files(args: argparse.Namespace) -> list[Path]:
    heatmaps = [args.heatmap, _beside(args.heatmap)] if args.heatmap else []
    return [path for path in (args.json, *heatmaps) if path is not None]


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-cosine{path.suffix or '.png'}")


def _write(args: argparse.Namespace, cells: Mapping[tuple[str, str], list[Cell]]) -> None:
    from flcourse.runtime import finite_json, provenance
    from flcourse.viz import lie_rule_matrix

    if args.json:
        content = {
            "setting": asdict(setting_of(args)),
            "seeds": list(range(args.seeds)),
            "cells": [asdict(cell) for those in cells.values() for cell in those],
            "undefined": [list(key) for key, those in cells.items() if not those],
            "provenance": provenance(),
        }
        text = json.dumps(finite_json(content), indent=1, allow_nan=False, ensure_ascii=False)
        _replace(args.json, (text + "\n").encode())
    if args.heatmap:
        for measure, path in (("accuracy", args.heatmap), ("cosine", _beside(args.heatmap))):
            _replace(path, lie_rule_matrix(_table(cells, measure), measure=measure).png)
    if not args.quiet:
        print(
            "\n".join([f"written: {path}" for path in _files(args)]), end="\n" * bool(_files(args))
        )


def _table(
    cells: Mapping[tuple[str, str], list[Cell]], measure: str
) -> dict[str, dict[str, list[float]]]:
    table: dict[str, dict[str, list[float]]] = {}
    for (attack, rule), those in cells.items():
        table.setdefault(attack, {})[rule] = [getattr(cell, measure) for cell in those]
    return table


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(content)
    partial.replace(path)
