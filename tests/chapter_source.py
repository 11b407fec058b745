"""How the tests read a chapter: its cells, its exercises with their solutions, its prose."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext

from data_scripts.book.common import FRONT_MATTER, is_chapter, notebooks

SOURCES = notebooks()
NUMBERED = [path for path in SOURCES if is_chapter(path)]
CHECK = re.compile(r"""check\(\s*["'](\d\d\.\d+)["']\s*,\s*(.+?)\)\s*(?:#.*)?$""", re.MULTILINE)
SOLUTION = re.compile(
    r"<details>\s*<summary>Solution</summary>\n(.*?)</details>", re.DOTALL | re.IGNORECASE
)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Exercise:
    """One exercise as it stands on the page."""

    chapter: str
    id: str
    stub: str  # the whole cell, with its call of check
    answer: str  # the expression that is handed to check
    solution: str
    before: tuple[str, ...]  # the code cells above it


def cells(source: Path) -> list[Any]:
    """The chapter's cells in order."""
    return list(jupytext.read(source).cells)


def exercises(source: Path) -> list[Exercise]:
    """The chapter's exercises: each tagged cell with the next solution below it."""
    found, before, waiting = [], [], None
    for cell in cells(source):
        if cell.cell_type == "code":
            if "exercise" in cell.metadata.get("tags", []):
                match = CHECK.search(cell.source)
                assert match, f"{source.name}: an exercise cell without check(…):\n{cell.source}"
                assert waiting is None, f"{source.name}: exercise {waiting} has no solution"
                waiting = (match[1], cell.source, match[2], tuple(before))
            before.append(cell.source)
        elif waiting and (block := SOLUTION.search(cell.source)):
            code = "\n".join(PYTHON.findall(block[1]))
            number, stub, answer, above = waiting
            found.append(Exercise(source.stem, number, stub, answer, code, above))
            waiting = None
    assert waiting is None, f"{source.name}: exercise {waiting[0]} has no solution"
    return found


def groundwork(before: tuple[str, ...]) -> dict[str, Any]:
    """A namespace with the imports, functions and plain constants of the cells above, nothing run.

    Solutions may use what the chapter has imported or defined; they must not need its results.
    """
    space: dict[str, Any] = {}
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    for code in before:
        tree = ast.parse("\n".join(line for line in code.splitlines() if line[:1] not in "%!"))
        kept = ast.Module([node for node in tree.body if isinstance(node, kinds)], [])
        exec(compile(kept, "<chapter>", "exec"), space)
    return space


def text_of(source: Path) -> str:
    """The chapter's source without its front matter."""
    return FRONT_MATTER.sub("", source.read_text(encoding="utf-8"))
