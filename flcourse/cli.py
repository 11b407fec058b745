"""The command line: `python -m flcourse COMMAND …`, one module for each command.

A command's module has `add_parser(subparsers)` and `run(args) -> exit code`. Only the chosen one is
imported, so that help appears at once. Exit codes: 0 done, 1 failed, 2 refused, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

PROGRAM = "python -m flcourse"
COMMANDS = {  # name -> module, one line of help
    "train": ("flcourse.runs", "train a model by federated averaging, and keep the run"),
    "attack": ("flcourse.attack_runs", "recover private pictures from what a client sends"),
    "byzantine": ("flcourse.byzantine_runs", "let clients lie, and try rules against it"),
    "data": ("flcourse.fetch", "list, download and verify data sets"),
}
EXAMPLES = f"""\
examples:
  {PROGRAM} train                               ten clients, MLP, half a minute
  {PROGRAM} train --partition dirichlet --alpha 0.1 --tag uneven
  {PROGRAM} train --tag uneven --resume         go on after Ctrl-C
  {PROGRAM} attack                              one photo, from one gradient
  {PROGRAM} byzantine                           three lies against three rules
  {PROGRAM} data                                which data sets there are
  {PROGRAM} COMMAND --help                      all options of a command

environment:
  FLCOURSE_DEVICE    cpu, cuda, cuda:1 or mps (default: the best that is here)
  FLCOURSE_DATA      the folder of data sets (default: flcourse in the user's cache)
  FLCOURSE_DATASET   the data set where none is named (default: glyphs)
"""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line instead of repeating the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (all options: {self.prog} --help)\n")


def build_parser(chosen: str | None = None) -> Parser:
    """The whole parser; only the command `chosen` has its options."""
    parser = Parser(
        prog=PROGRAM,
        description="Federated Learning, Attacked and Defended: the course's command line.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, help_line) in COMMANDS.items():
        if name == chosen:
            importlib.import_module(module).add_parser(commands)
        else:
            commands.add_parser(name, help=help_line)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = build_parser(arguments[0] if arguments else None)
        args = parser.parse_args(arguments)
        code: int = args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code
