"""The machinery of the book: pairs, install cell, execution records, generated tables."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest
import yaml
from docutils import nodes

from data_scripts import lower_bounds
from data_scripts.book import address, common, execute, extension, outline, pairs, tables
from flcourse.notation import NAMES

ROOT = common.ROOT
SOURCE = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
flcourse:
  number: "01"
---

# A question?

Some words.

{install}
```{{code-cell}} python
:tags: [exercise]

1 + 1
```
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one small chapter."""
    text = SOURCE.format(install=address.install_cell(""))
    (tmp_path / "01_small.md").write_text(text, encoding="utf-8")
    return tmp_path


def test_sync_writes_the_same_bytes_each_time_and_check_sees_drift(folder):
    assert pairs.sync(folder) == ["01_small.ipynb"]
    first = (folder / "01_small.ipynb").read_bytes()
    assert pairs.sync(folder) == [] and pairs.check(folder) == []
    (folder / "01_small.ipynb").unlink()
    assert pairs.check(folder) == ["01_small.ipynb"]
    pairs.sync(folder)
    assert (folder / "01_small.ipynb").read_bytes() == first
    source = folder / "01_small.md"
    source.write_text(source.read_text(encoding="utf-8") + "\nMore.\n", encoding="utf-8")
    assert pairs.check(folder) == ["01_small.ipynb"]
    (folder / "02_orphan.ipynb").write_text("{}", encoding="utf-8")
    assert pairs.check(folder) == ["01_small.ipynb", "02_orphan.ipynb"]


def test_notebook_keeps_tags_and_folds_the_install_cell(folder):
    pairs.sync(folder)
    notebook = nbformat.read(folder / "01_small.ipynb", as_version=4)
    install, exercise = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert install.metadata == {"cellView": "form", "tags": ["hide-input"]}
    assert exercise.metadata == {"tags": ["exercise"]}


def test_address_is_stamped_into_every_chapter_and_taken_out_again(folder):
    source = folder / "01_small.md"
    before = source.read_text(encoding="utf-8")
    url = "https://github.com/someone/course"
    assert address.stamp_all(url, folder) == ["01_small.md"]
    assert f'address = "{url}"' in source.read_text(encoding="utf-8")
    assert url in (folder / "01_small.ipynb").read_text(encoding="utf-8")
    assert address.stamp_all(url, folder) == []
    address.stamp_all("", folder)
    assert source.read_text(encoding="utf-8") == before


def test_colab_link():
    link = address.colab_link("https://github.com/someone/course.git", "chapters/01_a.ipynb")
    assert link.endswith("/github/someone/course/blob/main/chapters/01_a.ipynb")


def run_install_cell(python: Path, source: str | None) -> subprocess.CompletedProcess[str]:
    """Run the install cell as a notebook would, in another environment."""
    match = common.CODE_CELL.search(address.install_cell(""))
    assert match is not None
    code = "\n".join(line for line in match[1].splitlines() if not line.startswith(":"))
    environment = {key: value for key, value in os.environ.items() if key != "FLCOURSE_SOURCE"}
    environment |= {"FLCOURSE_SOURCE": source} if source else {}
    return subprocess.run(
        [python, "-c", code], env=environment, cwd=python.parent, capture_output=True, text=True
    )


@pytest.mark.slow
def test_install_cell_installs_the_local_repository_and_nothing_else(tmp_path):
    """The way a learner gets the package, without the repository's address."""
    copy = tmp_path / "checkout"  # pip builds in place: keep the working tree clean
    shutil.copytree(ROOT / "flcourse", copy / "flcourse", ignore=shutil.ignore_patterns("__pyc*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy / name)
    (copy / "README.md").touch()
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    refused = run_install_cell(python, None)
    assert refused.returncode != 0 and "set FLCOURSE_SOURCE" in refused.stderr
    done = run_install_cell(python, str(copy))
    assert done.returncode == 0, done.stderr
    question = "import importlib.util as u, pathlib; print(u.find_spec('flcourse').origin)"
    found = subprocess.run(
        [python, "-c", question], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    installed = Path(found.stdout.strip()).parent
    assert tmp_path in installed.parents
    embedded = {
        path.relative_to(ROOT / "flcourse") for path in (ROOT / "flcourse" / "assets").rglob("*")
    }
    missing = [path for path in embedded if not (installed / path).exists()]
    assert missing == [], "embedded data must be in the wheel"
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {line.split("==")[0].lower() for line in listed.stdout.split()}
    assert names <= {"flcourse", "pip", "setuptools"}
    assert run_install_cell(python, None).returncode == 0, "a second run must do nothing"


def test_key_changes_with_text_package_and_profile_only(tmp_path, monkeypatch):
    source = tmp_path / "01_a.md"
    source.write_text("text", encoding="utf-8")
    monkeypatch.setenv("FLCOURSE_PROFILE", "quick")
    key = execute.chapter_key(source, "package")
    assert execute.chapter_key(source, "package") == key
    assert execute.chapter_key(source, "another") != key
    monkeypatch.setenv("FLCOURSE_PROFILE", "full")
    assert execute.chapter_key(source, "package") != key
    monkeypatch.setenv("FLCOURSE_PROFILE", "quick")
    source.write_text("new text", encoding="utf-8")
    assert execute.chapter_key(source, "package") != key


def test_package_hash_sees_every_file_but_no_bytecode(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = execute.package_hash(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert execute.package_hash(tmp_path) == first
    (tmp_path / "result.json").write_text("{}")
    assert execute.package_hash(tmp_path) != first


def executed_copy() -> nbformat.NotebookNode:
    """A notebook as nbmake leaves it: timing, widget state, a claim's bundle."""
    cell = nbformat.v4.new_code_cell("claim(…)")
    start, end = "2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:02.500000Z"
    cell.metadata["execution"] = {"iopub.status.busy": start, "shell.execute_reply": end}
    bundle = {"text/plain": "✓ a is 1", execute.CLAIM: {"sentence": "a is 1", "values": {"a": 1}}}
    cell.outputs = [nbformat.v4.new_output("display_data", bundle)]
    return nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})


def test_executed_copy_gives_claims_and_seconds_and_is_stripped():
    notebook = executed_copy()
    assert execute.seconds(notebook) == 2.5
    assert execute.claims(notebook) == [{"sentence": "a is 1", "values": {"a": 1}}]
    execute.strip(notebook)
    assert execute.claims(notebook) == [] and "widgets" not in notebook.metadata
    assert notebook.cells[0].metadata == {}
    assert notebook.cells[0].outputs[0].data == {"text/plain": "✓ a is 1"}


def test_card_names():
    assert extension.slug("Threat model") == "threat-model"
    assert extension.slug("Try it.") == "try-it"
    style = (ROOT / "assets" / "flcourse.css").read_text(encoding="utf-8")
    assert all(f"flc-card-{name}" in style for name in extension.CARDS)


def test_a_card_without_attacker_is_calm():
    texts = ("Nobody attacks. All is well.", "a server that nobody attacks")
    page = nodes.document(None, None)
    for text in texts:
        lead = nodes.strong("", "Threat model")
        paragraph = nodes.paragraph("", "", lead, nodes.Text(f" — {text}"))
        page += nodes.block_quote("", paragraph)
    extension.style_cards(None, page)
    found = ["flc-card-calm" in quote["classes"] for quote in page.findall(nodes.block_quote)]
    assert found == [True, False]


def test_the_install_cell_is_named_before_it_is_folded():
    code = nodes.literal_block("", address.install_cell(""))
    look = {"nb_element": "cell_code", "hide_mode": "input", "prompt_show": "Show the code"}
    cell = nodes.container("", code, **look)
    other = nodes.container("", nodes.literal_block("", "1 + 1"), **look)
    page = nodes.document(None, None)
    page += [cell, other]
    extension.name_install_cell(None, page)
    assert cell["prompt_show"].startswith("Install the course")
    assert other["prompt_show"] == "Show the code"


def test_the_install_cell_fits_the_column():
    assert max(map(len, address.install_cell("").splitlines())) <= 80


def test_minutes_to_read_counts_prose_and_code():
    assert common.minutes_to_read("word " * 100) == 5
    assert common.minutes_to_read("word " * 1900) == 10
    assert common.minutes_to_read("word " * 2100) == 15


def test_outline_has_twenty_pages_with_the_intro_and_each_question_once():
    entries = [entry for part in outline.PARTS for entry in part.chapters]
    assert [entry.number for entry in entries] == [f"{n:02d}" for n in range(1, 20)]
    assert len({entry.question for entry in entries}) == 19
    for entry in entries:
        for path in common.CHAPTERS.glob(f"{entry.number}_*.md"):
            assert entry.question.rstrip("?") in path.read_text(encoding="utf-8")


def test_map_links_what_is_written_and_greys_the_rest():
    page = extension.map_html()
    written = list(common.CHAPTERS.glob("[0-9][0-9]_*.md"))
    assert page.count("<a href=") == len(written)
    assert page.count('class="flc-map-grey"') == 19 - len(written)


def names_in_package() -> set[str]:
    """Every parameter and annotated field of the package."""
    names = set()
    for path in (ROOT / "flcourse").rglob("*.py"):
        if path.name == "notation.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names


def test_every_name_of_the_notation_page_is_used_in_the_package():
    known = names_in_package()
    assert [entry.code for entry in NAMES if entry.code not in known] == []
    assert len({entry.symbol for entry in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_generated_tables_are_markdown(name):
    text = tables.TABLES[name]()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert text and (not rows or rows[1].startswith("| ---"))


def test_table_cells_cannot_break_the_table():
    assert tables.table(("a",), [("x|y\nz",)]).splitlines()[-1] == "| x\\|y z |"
    assert tables.cell(0.123456) == "0.1235"


def test_lower_bounds_are_those_of_pyproject():
    bounds = lower_bounds.constraints()
    assert "torch==2.4" in bounds or "torch==2.4.0" in bounds
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in bounds)
    assert len(bounds) == len({line.split("==")[0] for line in bounds})


def test_workflow_and_ci_run_the_commands_of_the_readme():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["jobs"]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("make test", "make book", "make check"):
        assert command in script
    assert sys.version_info >= (3, 10)
