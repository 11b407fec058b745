"""Chapters in two formats: NAME.md is the source, NAME.ipynb is what Colab and JupyterLab open.

    python -m data_scripts.book.pairs sync     write every .ipynb from its .md
    python -m data_scripts.book.pairs check    fail where a pair differs

One direction only: `jupytext --sync` goes by file times and can throw away the newer edit. The
same source always gives the same bytes: a cell's id is its kind and its place.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat

from data_scripts.book.common import CHAPTERS, notebooks

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def convert(source: Path) -> str:
    """The .ipynb's text for a .md source: no outputs, ids by place, Colab told to fold forms."""
    notebook = jupytext.read(source)
    for place, cell in enumerate(notebook.cells):
        cell.id = f"{cell.cell_type}-{place:03d}"
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            if "hide-input" in cell.metadata.get("tags", []):
                cell.metadata["cellView"] = "form"  # Colab's way of folding
    kept = {key: notebook.metadata[key] for key in ("flcourse",) if key in notebook.metadata}
    language = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    notebook.metadata = nbformat.from_dict(kept | {"kernelspec": KERNEL, "language_info": language})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4, indent=1, sort_keys=True) + "\n"


def sync(folder: Path = CHAPTERS) -> list[str]:
    """Write every notebook whose text changed; the names of those written."""
    written = []
    for source in notebooks(folder):
        target, text = source.with_suffix(".ipynb"), convert(source)
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
            written.append(target.name)
    return written


def check(folder: Path = CHAPTERS) -> list[str]:
    """Names of notebooks that differ from their source, are missing, or have no source."""
    sources = notebooks(folder)
    expected = {source.with_suffix(".ipynb").name: source for source in sources}
    wrong = [path.name for path in folder.glob("*.ipynb") if path.name not in expected]
    for name, source in expected.items():
        target = folder / name
        if not target.is_file() or target.read_text(encoding="utf-8") != convert(source):
            wrong.append(name)
    return sorted(wrong)


def main() -> int:
    """Command line; see the module's docstring."""
    actions = {"sync": sync, "check": check}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        print("usage: python -m data_scripts.book.pairs sync|check")
        return 2
    names = actions[sys.argv[1]]()
    if sys.argv[1] == "check" and names:
        print("differ from their source, run make sync:", *names)
        return 1
    print("written:" if sys.argv[1] == "sync" else "in sync", *names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
