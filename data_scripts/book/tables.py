"""Tables of the plain pages, as Markdown: made from the code, the last run and stored results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from data_scripts.book.common import RESULTS, front_matter, notebooks, record

NOT_RUN = "not run"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def cell(value: object) -> str:
    """One cell: numbers to four digits, no bars and no line breaks."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def title_of(source: Path) -> str:
    """A chapter's title as its number and its link."""
    number = str(front_matter(source).get("flcourse", {}).get("number", "")).strip()
    text = source.read_text(encoding="utf-8")
    title = next(line[2:].strip() for line in text.splitlines() if line.startswith("# "))
    return f"[{number} {title}]({source.name})".replace("[ ", "[")


def claims() -> str:
    """Every claim of every page: its sentence, and the values it was checked on."""
    blocks = []
    for source in notebooks():
        entries = record(source.stem).get("claims", [])
        if not entries:
            continue
        rows = [
            (place, entry["sentence"], values(entry["values"]))
            for place, entry in enumerate(entries, start=1)
        ]
        anchor = "claims-" + source.stem.replace("_", "-")
        heading = f"({anchor})=\n\n**{title_of(source)}**"
        blocks.append(heading + "\n\n" + table(("", "claim", "values"), rows))
    return "\n\n".join(blocks) or "No chapter has been executed yet."


def values(found: dict[str, Any]) -> str:
    """A claim's values as `name = value`, comma-separated."""
    return ", ".join(f"`{name}` = {cell(value)}" for name, value in found.items())


def seconds() -> str:
    """Seconds and claims per chapter, as last executed for this build."""
    rows = []
    for source in notebooks():
        run = record(source.stem)
        made = run.get("provenance", {})
        spent = math.ceil(run["seconds"]) if run else NOT_RUN
        number = len(run["claims"]) if run else NOT_RUN
        rows.append((title_of(source), spent, number, made.get("date", NOT_RUN)))
    known = [row[1] for row in rows if isinstance(row[1], int)]
    rows.append(("**together**", sum(known), "", ""))
    return table(("page", "seconds", "claims", "executed on"), rows)


def versions() -> str:
    """What this build ran with."""
    made = [record(source.stem).get("provenance") for source in notebooks()]
    latest = max((entry for entry in made if entry), key=lambda e: e["date"], default=None)
    if latest is None:
        return "No chapter has been executed yet."
    rows = [(f"`{key}`", latest[key]) for key in ("profile", "device", "machine", "threads")]
    rows.append(("`python`", latest["python"]))
    rows += [(f"`{name}`", version) for name, version in latest.get("packages", {}).items()]
    return table(("", "this build"), rows)


def stored_files() -> list[dict[str, Any]]:
    """Every stored result and benchmark, with its file's name added."""
    paths = [path for folder in RESULTS for path in sorted(folder.glob("*.json"))]
    return [{"name": path.stem} | json.loads(path.read_text(encoding="utf-8")) for path in paths]


def runs() -> str:
    """On which profile and device the chapters were run, and when."""
    stored = {entry["name"]: entry for entry in stored_files()}
    current = [record(source.stem).get("provenance") for source in notebooks()]
    live = next((entry for entry in current if entry), {})
    rows = []
    for profile, device, words in (
        ("quick", "cpu", "two CPU cores, embedded data"),
        ("quick", "gpu", "one GPU, embedded data"),
        ("full", "gpu", "one GPU, CIFAR-10 and friends"),
    ):
        made = stored.get(f"chapters_{profile}_{device}", {}).get("provenance", {})
        if live.get("profile") == profile and (live.get("device") == "cpu") == (device == "cpu"):
            made = live
        when, where = made.get("date", NOT_RUN), made.get("device", "")
        rows.append((f"`{profile}`", words, when, where))
    return table(("profile", "on", "executed on", "device"), rows)


def rows_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """A stored file's table, where it holds one: a list of records with the same keys."""
    for key in ("rows", "results"):
        rows = entry.get(key)
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            return rows
    return []


def results() -> str:
    """Every stored result and benchmark: when and on what it was made, then their rows."""
    stored = stored_files()
    if not stored:
        return "Nothing stored yet."
    header = ("stored", "made on", "device", "machine", "seeds", "torch", "commit")
    lines = []
    for entry in stored:
        made = entry.get("provenance", {})
        seeds = entry.get("seeds") or []
        lines.append(
            (
                f"`{entry['name']}`",
                made.get("date", entry.get("made_on")),
                made.get("device"),
                made.get("machine"),
                len(seeds) or None,
                made.get("packages", {}).get("torch"),
                f"`{made['commit']}`" if made.get("commit") else None,
            )
        )
    blocks = [table(header, lines)]
    for entry in stored:
        if rows := rows_of(entry):
            keys = list(rows[0])
            text = [f"**{entry.get('title', entry['name'])}**"]
            text += [str(entry["note"])] if "note" in entry else []
            text.append(table(keys, [[row.get(key) for key in keys] for row in rows]))
            blocks.append("\n\n".join(text))
    return "\n\n".join(blocks)


def notation() -> str:
    """The course's symbols with their names in code."""
    from flcourse.notation import NAMES

    rows = [(f"${n.symbol}$", f"`{n.code}`", n.meaning, n.unit, n.chapter) for n in NAMES]
    return table(("symbol", "in code", "meaning", "unit or shape", "chapter"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "claims": claims,
    "seconds": seconds,
    "versions": versions,
    "runs": runs,
    "results": results,
    "notation": notation,
}
