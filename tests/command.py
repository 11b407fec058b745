"""The command line in-process."""

from __future__ import annotations

from flcourse.cli import main


def run_command(capsys, *given) -> tuple[object, str, str]:
    """Exit code, standard output and standard error of ``python -m flcourse GIVEN``."""
    try:
        code = main([*given])
    except SystemExit as stop:  # how argparse leaves
        code = stop.code
    return (code, *capsys.readouterr())
