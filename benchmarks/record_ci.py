"""Keep the seconds of `.ci/run`'s stages (set-up, tests, book) for the status page.

    .ci/run | tee .book/ci.log && .venv/bin/python benchmarks/record_ci.py .book/ci.log

Reads the lines `time: STAGE N s` and writes results/stages.json.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from flcourse.runtime import provenance

RESULT = Path(__file__).parent / "results" / "stages.json"
SHOWN = {"set-up": "set-up in a new environment", "test": "tests", "book": "chapters and book",
         "check": "the book in a browser", "lint": "lint and types"}  # fmt: skip


def stages(log: str) -> dict[str, int]:
    """Seconds by stage; the last run wins where a log holds several."""
    return {name: int(seconds) for name, seconds in re.findall(r"^time: (\S+) (\d+) s$", log, re.M)}


def main() -> int:
    """Read the log that is named on the command line; an exit code."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    found = stages(Path(sys.argv[1]).read_text(encoding="utf-8", errors="replace"))
    missing = [name for name in ("set-up", "test", "book") if name not in found]
    if missing:
        print(f"{sys.argv[1]} has no line 'time: {missing[0]} … s': run .ci/run", file=sys.stderr)
        return 1
    record = {
        "name": "stages",
        "title": "Seconds of a complete run on a fresh clone",
        "provenance": provenance(),
        "rows": [{"stage": text, "seconds": found[n]} for n, text in SHOWN.items() if n in found],
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(RESULT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
