"""Draw which chapter needs which (assets/prerequisites.png, on the teaching page).

    python -m data_scripts.make_prerequisites

Only direct needs are drawn: an arrow from 03 to 05 and one from 05 to 06 say that 06 needs 03.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.figure import Figure as Canvas
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from data_scripts.book.outline import PARTS
from flcourse.viz import COLOURS, INK, Figure, house_style

TARGET = Path(__file__).resolve().parents[1] / "assets" / "prerequisites.png"

NEEDS = {
    "01": "", "02": "01", "03": "02", "04": "03", "05": "03", "06": "04 05", "07": "06",
    "08": "03", "09": "02", "10": "02", "11": "10", "12": "11", "13": "02", "14": "13",
    "15": "02", "16": "15", "17": "13 16", "18": "12 17", "19": "06 18",
}  # fmt: skip
PLACES = {  # column, row from the top
    "01": (2.5, 0), "02": (2.5, 1),
    "03": (1, 2), "09": (2, 2), "10": (3, 2), "13": (4, 2), "15": (5, 2),
    "04": (0, 3), "05": (1, 3), "08": (2, 3), "11": (3, 3), "16": (5.2, 3),
    "06": (0.5, 4), "12": (3, 4), "14": (4, 4), "17": (5.1, 4),
    "07": (0, 5), "18": (4, 5), "19": (2.5, 6),
}  # fmt: skip
WIDE, TALL, STEP = 0.92, 0.62, 1.0  # of a box, and from row to row


@house_style
def draw() -> Figure:
    """The graph, coloured by part."""
    canvas = Canvas(figsize=(6.6, 6.6))
    sheet = canvas.add_axes((0, 0, 1, 1))
    sheet.set(xlim=(-0.52, 5.74), ylim=(-6.4, 0.4))
    sheet.set_axis_off()
    for chapter, needed in NEEDS.items():
        x, y = PLACES[chapter]
        for before in needed.split():
            bx, by = PLACES[before]
            aside = min(max(0.25 * (x - bx), -0.3), 0.3)  # arrows of one box start apart
            start = (bx + aside, -by * STEP - TALL / 2)
            end = (x - aside, -y * STEP + TALL / 2)
            look = {"color": "#9CA3AF", "lw": 1.5, "shrinkA": 0, "shrinkB": 1}
            sheet.add_patch(
                FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, **look)
            )
    for part in PARTS:
        for entry in part.chapters:
            x, y = PLACES[entry.number]
            shape = "round,pad=0,rounding_size=0.08"
            corner = (x - WIDE / 2, -y * STEP - TALL / 2)
            box = {"ec": COLOURS[part.colour], "fc": "white", "lw": 2.2}
            sheet.add_patch(FancyBboxPatch(corner, WIDE, TALL, boxstyle=shape, **box))
            title = textwrap.fill(entry.title, 12, break_long_words=False)
            sheet.text(x, -y * STEP, f"{entry.number}\n{title}", ha="center", va="center",
                       size=9.5, color=INK, linespacing=1.05)  # fmt: skip
    return Figure(canvas, alt="A graph of the chapters; arrows lead to those that need them.")


def main() -> None:
    """Draw and save."""
    draw().save(TARGET)
    print(f"assets/{TARGET.name}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
