"""Build the book: execute what changed, then run Jupyter Book with warnings as errors.

python -m data_scripts.book.build [--jobs 2] [--timeout 300]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from data_scripts.book import pairs
from data_scripts.book.common import ROOT, WORK
from data_scripts.book.execute import execute


def render() -> int:
    """Run Jupyter Book; fails on any warning and where Sphinx had to execute a chapter itself."""
    program = str(Path(sys.executable).parent / "jupyter-book")
    command = [program, "build", "-W", "-n", "--keep-going", "--all", "."]
    lines = []
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(line)
        lines.append(line)
    code = process.wait()
    (WORK / "build.log").write_text("".join(lines), encoding="utf-8")
    again = [line for line in lines if "Executed notebook" in line]
    if again:
        print("These chapters were executed a second time, so the cache did not match:", *again)
    return code or int(bool(again))


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=300, help="seconds a cell")
    options = parser.parse_args()
    drifted = pairs.check()
    if drifted:
        print("These notebooks differ from their source; run make sync:", *drifted)
        return 1
    started = time.perf_counter()
    code = execute(jobs=options.jobs, timeout=options.timeout)
    if code:
        return code
    executed = time.perf_counter()
    code = render()
    finished = time.perf_counter()
    print(f"chapters {executed - started:.0f} s, pages {finished - executed:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
