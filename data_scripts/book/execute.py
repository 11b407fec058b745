"""Run every chapter that changed exactly once, and keep what it printed.

A chapter is executed again when its text, the package or the profile changed, not otherwise.
nbmake runs the copies (two at a time, one thread each), so a chapter that raises fails as a test
does. The executed copies go into a jupyter-cache, where the Sphinx build finds them.

    python -m data_scripts.book.execute [--jobs 2] [--timeout 300] [--store] [NAME ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_cache import get_cache

from data_scripts.book.common import CACHE, COPIES, RECORDS, ROOT, notebooks, record

OWN = "application/vnd.flcourse."  # data beside what a reader sees, for machines
CLAIM = OWN + "claim+json"


def package_hash(folder: Path = ROOT / "flcourse") -> str:
    """A hash over every file of the package, its embedded data and stored results too."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def chapter_key(source: Path, package: str) -> str:
    """What a chapter's result depends on: its text, the package, the profile, a forced device."""
    setting = [os.environ.get(f"FLCOURSE_{name}", "") for name in ("PROFILE", "DEVICE", "DATASET")]
    parts = (source.read_text(encoding="utf-8"), package, *setting)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def write_copy(source: Path) -> Path:
    """The chapter as an .ipynb in the work folder, ready to be executed."""
    copy = COPIES / f"{source.stem}.ipynb"
    notebook = jupytext.read(source)
    nbformat.write(notebook, copy)
    return copy


def run(copies: Iterable[Path], jobs: int, timeout: int) -> int:
    """Execute the copies in place by nbmake; the exit code of pytest."""
    (COPIES / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")  # not the repository's
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(COPIES / "pytest.ini")]
    command += ["--nbmake", "--overwrite", f"--nbmake-timeout={timeout}", "-n", str(jobs)]
    command += ["-p", "no:cacheprovider", *map(str, copies)]
    environment = os.environ | {"FLCOURSE_PROGRESS": "0", "MPLBACKEND": "agg"}
    for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment.setdefault(threads, "1")
    return subprocess.call(command, env=environment, cwd=ROOT)


def finished(copy: Path) -> bool:
    """Whether every cell of an executed copy ran, and none raised."""
    code = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    raised = any(output.output_type == "error" for cell in code for output in cell.outputs)
    return not raised and all(cell.execution_count for cell in code)


def seconds(notebook: nbformat.NotebookNode) -> float:
    """Wall-clock seconds from the first cell's start to the last cell's reply."""
    stamps = [
        datetime.fromisoformat(stamp.replace("Z", "+00:00"))
        for cell in notebook.cells
        for stamp in cell.metadata.get("execution", {}).values()
    ]
    return (max(stamps) - min(stamps)).total_seconds() if stamps else 0.0


def claims(notebook: nbformat.NotebookNode) -> list[dict[str, Any]]:
    """What the chapter claimed, in order: the bundles that `claim()` left beside its sentences."""
    return [
        output.data[CLAIM]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if CLAIM in output.get("data", {})
    ]


def strip(notebook: nbformat.NotebookNode) -> None:
    """Remove timing (jupyter-cache would not match), widget state and the claims' data.

    The page has no kernel for a widget, and the claims are in the record by now.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            for kind in [kind for kind in output.get("data", {}) if kind.startswith(OWN)]:
                del output.data[kind]


def keep(source: Path, copy: Path, key: str, provenance: dict[str, Any]) -> None:
    """Put one executed copy into the cache and write its record."""
    notebook = nbformat.read(copy, as_version=4)
    entry = {
        "key": key,
        "seconds": round(seconds(notebook), 1),
        "claims": claims(notebook),
        "provenance": provenance,
    }
    strip(notebook)
    nbformat.write(notebook, copy)
    get_cache(CACHE).cache_notebook_file(
        copy, uri=str(source), overwrite=True, check_validity=False
    )
    text = json.dumps(entry, indent=1, ensure_ascii=False, sort_keys=True)
    (RECORDS / f"{source.stem}.json").write_text(text + "\n", encoding="utf-8")


def store(sources: Iterable[Path]) -> Path:
    """Write the seconds of every chapter into benchmarks/results, for the status page."""
    rows = [
        {
            "chapter": source.stem,
            "seconds": math.ceil(record(source.stem)["seconds"]),
            "claims": len(record(source.stem)["claims"]),
        }
        for source in sources
    ]
    provenance = record(next(iter(sources)).stem)["provenance"]
    device = provenance["device"] if provenance["device"] in ("cpu", "mps") else "gpu"
    name = f"chapters_{provenance['profile']}_{device}"
    result = {"name": name, "title": "Seconds per chapter", "provenance": provenance, "rows": rows}
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def execute(names: Iterable[str] = (), *, jobs: int = 2, timeout: int = 300) -> int:
    """Execute the chapters whose key changed (all of them, or those named); an exit code."""
    for folder in (COPIES, RECORDS, CACHE):
        folder.mkdir(parents=True, exist_ok=True)
    package = package_hash()
    wanted = [path for path in notebooks() if not names or path.stem in set(names)]
    keys = {path: chapter_key(path, package) for path in wanted}
    stale = [path for path in wanted if record(path.stem).get("key") != keys[path]]
    print(f"{len(stale)} of {len(wanted)} chapters to execute", flush=True)
    if not stale:
        return 0
    copies = {source: write_copy(source) for source in stale}
    failed = run(copies.values(), min(jobs, len(stale)), timeout)
    from flcourse.runtime import provenance

    made = provenance()
    for source, copy in copies.items():
        if finished(copy):
            keep(source, copy, keys[source], made)
            print(f"  {source.stem}: {record(source.stem)['seconds']:.0f} s", flush=True)
    return failed


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="chapters, e.g. 01_fedavg (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="chapters at a time (default 2)")
    parser.add_argument("--timeout", type=int, default=300, help="seconds a cell (default 300)")
    parser.add_argument("--store", action="store_true", help="write the seconds to benchmarks/")
    options = parser.parse_args()
    code = execute(options.names, jobs=options.jobs, timeout=options.timeout)
    if options.store and code == 0:
        print(store(notebooks()))
    return code


if __name__ == "__main__":
    sys.exit(main())
