"""Where the course is published: one line of pyproject.toml, stamped into what needs it.

    python -m data_scripts.book.address https://github.com/OWNER/NAME    write it everywhere
    python -m data_scripts.book.address ""                              take it out again

The install cell is the same in every chapter. While no address is known it installs nothing: it
says how to install from a local checkout, or does so where FLCOURSE_SOURCE names one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from data_scripts.book import pairs
from data_scripts.book.common import CHAPTERS, CODE_CELL, ROOT, address, notebooks

PYPROJECT = ROOT / "pyproject.toml"
INSTALL = """```{{code-cell}} python
:cellView: form
:tags: [hide-input]

# @title Install the course where it is missing (Colab)
import importlib.util, os, subprocess, sys

address = "{address}"
default = address and f"git+{{address}}"
source = os.environ.get("FLCOURSE_SOURCE", default)
if importlib.util.find_spec("flcourse") is None:
    if not source:
        raise ImportError("no flcourse: set FLCOURSE_SOURCE to your copy of it")
    # --no-deps: what the course needs is there; torch must not be reinstalled.
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", source]
    subprocess.run(pip, check=True)
    importlib.invalidate_caches()
```
"""
URL = r"(https://github\.com/[\w.-]+/[\w.-]+)?"
MARK = "# @title Install the course"


def install_cell(url: str) -> str:
    """The install cell of every chapter, for one address (may be empty)."""
    return INSTALL.format(address=url)


def colab_link(url: str, path: str) -> str:
    """The link that opens a notebook of a GitHub repository in Colab."""
    place = url.removeprefix("https://github.com/").removesuffix(".git").strip("/")
    return f"https://colab.research.google.com/github/{place}/blob/main/{path}"


def stamp(text: str, url: str) -> str:
    """A chapter's source with its install cell replaced by the current one."""

    def current(match: re.Match[str]) -> str:
        return install_cell(url) if MARK in match[0] else match[0]

    return re.sub(CODE_CELL.pattern + r"\n", current, text, flags=CODE_CELL.flags)


def stamp_all(url: str, folder: Path = CHAPTERS) -> list[str]:
    """Stamp every chapter and write the notebooks again; the names of those changed."""
    changed = []
    for source in notebooks(folder):
        text = source.read_text(encoding="utf-8")
        stamped = stamp(text, url)
        if stamped != text:
            source.write_text(stamped, encoding="utf-8")
            changed.append(source.name)
    pairs.sync(folder)
    return changed


def main() -> int:
    """Command line; see the module's docstring."""
    if len(sys.argv) != 2 or not re.fullmatch(URL, sys.argv[1]):
        print("usage: make address URL=https://github.com/OWNER/NAME   (empty: not published)")
        return 2
    url = sys.argv[1]
    text = PYPROJECT.read_text(encoding="utf-8")
    pattern = r'(\[tool\.flcourse\][^\[]*?^address\s*=\s*")[^"]*(")'
    text, found = re.subn(pattern, rf"\g<1>{url}\g<2>", text, flags=re.MULTILINE | re.DOTALL)
    if found != 1:
        raise ValueError("pyproject.toml must have one address line under [tool.flcourse]")
    PYPROJECT.write_text(text, encoding="utf-8")
    address.cache_clear()
    print(f"address {url!r}; stamped:", *stamp_all(url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
