"""Where the book's sources lie, and how a chapter's source is read."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = ROOT / "chapters"
WORK = ROOT / ".book"  # not _build: nbmake skips every path that has such a part
COPIES = WORK / "run"  # executed copies of the chapters
RECORDS = WORK / "records"  # one JSON a chapter: key, seconds, claims, provenance
CACHE = WORK / "cache"  # the jupyter-cache that the Sphinx build reads
RESULTS = (ROOT / "flcourse" / "assets" / "results", ROOT / "benchmarks" / "results")

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
CODE_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```[ ]*$", re.DOTALL | re.MULTILINE)
DETAILS = re.compile(r"<details>.*?</details>", re.DOTALL)


def front_matter(path: Path) -> dict[str, Any]:
    """The YAML block at the top of a MyST file; empty where there is none."""
    match = FRONT_MATTER.match(path.read_text(encoding="utf-8"))
    return (yaml.safe_load(match[1]) or {}) if match else {}


def notebooks(folder: Path = CHAPTERS) -> list[Path]:
    """The sources that are executed: those whose front matter names a kernel, in order."""
    return [path for path in sorted(folder.glob("*.md")) if "kernelspec" in front_matter(path)]


def is_chapter(path: Path) -> bool:
    """Whether a page is a numbered chapter, which carries the front strip and the fixed parts."""
    return bool(re.match(r"\d\d_", path.name))


def record(name: str) -> dict[str, Any]:
    """What the last run of a chapter noted; empty when it has not been executed."""
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@cache
def address() -> str:
    """The repository's address from pyproject.toml; empty until the course is published."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.split("[tool.flcourse]", 1)[1]
    match = re.search(r'^address\s*=\s*"([^"]*)"', table, re.MULTILINE)
    if match is None:
        raise ValueError('pyproject.toml has no line address = "..." under [tool.flcourse]')
    return match[1]


def prose(text: str) -> str:
    """A chapter's source without its front matter and its code cells."""
    return CODE_CELL.sub("", FRONT_MATTER.sub("", text))


def minutes_to_read(text: str) -> int:
    """Minutes, rounded up to 5: 200 words of prose a minute, and 5 seconds a line of code."""
    words = len(prose(text).split())
    lines = sum(len(code.splitlines()) for code in CODE_CELL.findall(text))
    return max(5, math.ceil((words / 200 + lines / 12) / 5) * 5)
