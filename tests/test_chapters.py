"""Every chapter has its fixed parts, reads well in every viewer, and its exercises work."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from data_scripts.book import pairs
from data_scripts.book.address import MARK, install_cell
from data_scripts.book.common import CHAPTERS, CODE_CELL, ROOT, address, front_matter
from data_scripts.book.extension import CARDS, slug
from flcourse.exercises import check
from flcourse.exercises import exercises as registered
from tests.chapter_source import (
    NUMBERED,
    PYTHON,
    SOURCES,
    Exercise,
    cells,
    exercises,
    groundwork,
    text_of,
)

LONGEST_CELL = 30
LONGEST_LINE = 80
FIXED = (
    "What you will be able to do",
    "Set-up",
    "What this does not prove",
    "Summary",
    "Further reading",
)
EXERCISES = [found for source in NUMBERED for found in exercises(source)]
UNIT = re.compile(r"\d[\d.,]*\s?(?:dB|%|×(?!\s?\d)|percent\b|percentage points?\b|[kMG]B\b)")
CITED = re.compile(r"\]\(|et al\.|\b(?:19|20)\d\d\b|<http")


def by_name(value: Any) -> str | None:
    """A readable name for a parametrized case."""
    if isinstance(value, Path):
        return value.stem
    return f"{value.chapter}-{value.id}" if isinstance(value, Exercise) else None


def each(values: list[Any]) -> pytest.MarkDecorator:
    """Parametrize over chapters or exercises by their names."""
    return pytest.mark.parametrize("case", values, ids=by_name)


def test_pairs_are_in_sync():
    assert pairs.check() == [], "run make sync"


def test_table_of_contents_names_every_page_and_no_other():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = {toc["root"]} | {entry["file"] for part in toc["parts"] for entry in part["chapters"]}
    there = {f"chapters/{path.stem}" for path in CHAPTERS.glob("*.md")}
    assert listed == there


@each(SOURCES)
def test_notebook_has_no_outputs_and_its_kernel(case):
    notebook = nbformat.read(case.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            folded = "hide-input" in cell.metadata.get("tags", [])
            assert (cell.metadata.get("cellView") == "form") == folded, "Colab folds by cellView"


@each(NUMBERED)
def test_fixed_parts(case):
    text = text_of(case)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    missing = [part for part in FIXED if part not in headings]
    assert missing == []
    assert sorted(headings.index(part) for part in FIXED) == [headings.index(p) for p in FIXED]
    title = re.findall(r"^# (.+)$", CODE_CELL.sub("", text), re.MULTILINE)
    assert len(title) == 1 and title[0].split(" (")[0].endswith("?"), "one title, a question"
    for lead in ("Threat model", "Ledger"):
        assert f"> **{lead}" in text, f"no {lead} card"
    about = front_matter(case)["flcourse"]
    assert about["number"] == case.name[:2]
    assert about["difficulty"] in (1, 2, 3) and about["data"]


@each(NUMBERED)
def test_opening_is_an_answer_and_a_figure(case):
    """Between the title and the objectives: a short answer and the hero figure."""
    opening = text_of(case).split("\n# ", 1)[-1].split("\n## ", 1)[0]
    assert len(CODE_CELL.findall(opening)) >= 1, "no hero figure"
    answer = next(part for part in opening.split("\n\n")[1:] if part.strip())
    assert not answer.startswith(("```", "#", ">")), "the title's question is not answered"


@each(NUMBERED)
def test_every_objective_names_an_exercise_that_exists(case):
    part = text_of(case).split("## What you will be able to do", 1)[1].split("\n## ", 1)[0]
    objectives = re.findall(r"^[-*\d][.)]? (.+(?:\n  .+)*)", part, re.MULTILINE)
    assert 3 <= len(objectives) <= 5
    there = {found.id for found in exercises(case)}
    for objective in objectives:
        named = set(re.findall(r"\d\d\.\d+", objective))
        assert named and named <= there, f"{objective!r} names {named or 'no exercise'}"


@each(NUMBERED)
def test_at_least_one_control_and_one_claim(case):
    code = "\n".join(cell.source for cell in cells(case) if cell.cell_type == "code")
    assert re.search(r"\b(scrubber|lab|emerging|widgets\.\w+)\(", code), "no control"
    assert "claim(" in code, "no claim"


@each(SOURCES)
def test_code_cells_are_short_and_spaced_by_prose(case):
    run = 0
    for cell in cells(case):
        if cell.cell_type != "code":
            run = 0
            continue
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source[:200]
        run += "hide-input" not in cell.metadata.get("tags", [])
        assert run <= 2, f"three code cells in a row, the last: {cell.source[:200]}"


@each(SOURCES)
def test_code_lines_fit_the_column(case):
    """A longer line is cut off at the column's edge; a reader must scroll to see its end."""
    blocks = [cell.source for cell in cells(case) if cell.cell_type == "code"]
    code = "\n".join(
        [block for block in blocks if MARK not in block] + PYTHON.findall(text_of(case))
    )
    assert [line for line in code.splitlines() if len(line) > LONGEST_LINE] == []


@each(SOURCES)
def test_markup_that_every_viewer_renders(case):
    """Colab shows MyST fences and roles raw."""
    for cell in cells(case):
        if cell.cell_type == "markdown":
            plain = re.sub(r"```python.*?```|`[^`\n]+`", "", cell.source, flags=re.DOTALL)
            assert not re.search(r"^(```+|~~~+|:::+)\{", plain, re.MULTILINE), cell.source[:200]
            assert not re.search(r"\{[a-z][\w:-]*\}`", cell.source), cell.source[:200]
            for block in re.findall(r"<summary>.*?</summary>\n(.*)", cell.source):
                assert block.strip() == "", "leave a blank line after </summary>"


@each(SOURCES)
def test_callouts_have_known_lead_words(case):
    """A block quote that starts in bold is a card, so its first words must name one."""
    for lead in re.findall(r"(?:^|\n\n)> \*\*(.+?)\*\*", text_of(case)):
        assert slug(lead) in CARDS, f"{lead!r} is no card; there are {sorted(CARDS)}"


@each(SOURCES)
def test_no_result_is_typed_in_prose(case):
    """A number with a unit belongs in a claim, unless a citation stands in the same paragraph."""
    for cell in cells(case):
        if cell.cell_type != "markdown":
            continue
        text = re.sub(
            r"```.*?```|`[^`\n]+`|\$\$.*?\$\$|\$[^$\n]+\$", "", cell.source, flags=re.DOTALL
        )
        for paragraph in text.split("\n\n"):
            found = UNIT.search(paragraph)
            assert not found or CITED.search(paragraph), f"typed in prose: {paragraph!r}"


@each(NUMBERED)
def test_install_cell_is_the_course_s_own(case):
    text = case.read_text(encoding="utf-8")
    assert text.count(MARK) == 1
    assert install_cell(address()) in text, "run make address URL=… (URL may be empty)"


@each(sorted(CHAPTERS.glob("*.md")))
def test_links_lead_somewhere(case):
    """Relative links of the sources; the built pages are checked in the browser tests."""
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE_CELL.sub("", text_of(case))):
        if re.match(r"[a-z]+:", target):
            assert target.startswith(("https://", "mailto:")), target
            continue
        path = target.partition("#")[0]
        assert not path or (CHAPTERS / path).exists(), f"{case.name} links to {target}"


@each(SOURCES)
def test_colab_links_point_at_notebooks_that_exist(case):
    for path in re.findall(
        r"colab\.research\.google\.com/github/[^/]+/[^/]+/blob/[^/]+/([^)\s\"]+)", text_of(case)
    ):
        assert (ROOT / path).is_file(), path


def answer_of(found: Exercise, code: str) -> Any:
    """What the code hands to check, with the imports and functions of the cells above."""
    space = groundwork(found.before)
    exec(compile(code, f"<{found.id}>", "exec"), space)
    return eval(found.answer, space)


def checked(found: Exercise, answer: Any) -> Any:
    """The result of the exercise's check."""
    return check(found.id, answer)


def test_every_registered_exercise_stands_in_its_chapter():
    written = {path.name[:2] for path in NUMBERED}
    expected = {number for number in registered() if number[:2] in written}
    assert {found.id for found in EXERCISES} == expected


@each(EXERCISES)
def test_solution_passes(case):
    result = checked(case, answer_of(case, case.solution))
    assert result.passed, result.message


@each(EXERCISES)
def test_stub_fails_with_help(case):
    result = checked(case, answer_of(case, case.stub))
    assert not result.passed
    assert len(result.message.split()) >= 4, f"no help: {result.message!r}"


def wrong_answers(number: str) -> list[tuple[str, Any, str]]:
    """The catalogued mistakes for one exercise, from tests/wrong/chNN.py."""
    path = ROOT / "tests" / "wrong" / f"ch{number[:2]}.py"
    if not path.is_file():
        return []
    spec = importlib.util.spec_from_file_location(f"wrong_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.WRONG.get(number, []))


@each(EXERCISES)
def test_wrong_answers_fail_and_are_told_why(case):
    catalogue = wrong_answers(case.id)
    assert len(catalogue) >= 2, f"tests/wrong needs two mistakes for exercise {case.id}"
    for name, answer, words in catalogue:
        result = checked(case, answer)
        assert not result.passed, f"{case.id}: the mistake {name!r} passes"
        assert words.lower() in result.message.lower(), f"{case.id} {name}: {result.message!r}"


@each(SOURCES)
def test_notebook_metadata_is_small(case):
    """Nothing of the writer's machine travels in a notebook."""
    notebook = json.loads(case.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info", "flcourse"}
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags", "mystnb", "cellView"}
