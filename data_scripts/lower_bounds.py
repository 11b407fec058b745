"""Print the oldest versions that pyproject.toml allows, as a constraints file for pip.

    python data_scripts/lower_bounds.py > oldest.txt
    pip install -e '.[book,test]' -c oldest.txt

Needs Python only: pyproject.toml's lists hold one requirement a line, so they are read as text.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r'^\s*"([A-Za-z0-9_.-]+)>=([0-9.]+)[^"]*",?\s*$', re.MULTILINE)
SECTIONS = ("dependencies = [", "test = [")


def constraints(path: Path = ROOT / "pyproject.toml") -> list[str]:
    """`name==version` for each lower bound of the core and of the extra `test`, once each."""
    text = path.read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for section in SECTIONS:
        block = text.split(section, 1)[1].split("\n]", 1)[0]
        for name, version in REQUIREMENT.findall(block):
            found.setdefault(name, version)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    print("\n".join(constraints()))
