"""Diagrams: the federation, one round step by step, the adversaries, the privacy stack.

A model or an update is drawn as what it is in this course: a row of numbers. Private things are
blue, the server and what it holds grey, attackers vermilion, defences green. Intro, 01, 02.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from flcourse.viz.base import (
    COLOURS,
    FAINT,
    INK,
    PAGE_WIDTH,
    Figure,
    house_style,
    to_picture,
)

SHEET = 7.4  # width of a diagram in its own units
CLIENTS_X = (0.85, 2.27, 3.7, 5.13, 6.55)  # five clients, the running case
COHORT = (1, 2, 4)  # places of those who take part in the drawn round: clients 2, 3 and 5
COUNTS = (4, 8, 6, 3, 10)  # samples drawn on each phone; shares of the average follow from them
SERVER = (3.7, 3.62)
LAYER_WIDTH = 24  # letters in a line of the privacy stack
ROUND_STEPS = (
    ("Sample", "The server picks a cohort; the other clients sit this round out."),
    ("Send", "Each client of the cohort receives the global model, one row of numbers."),
    ("Train", "Each trains it on data that stay where they are; the rows drift apart."),
    ("Return", "Each sends only its update: its own row minus the global row."),
    ("Average", "The server adds the mean of the updates, weighted by sample counts."),
)


@house_style
def federation_diagram(*, photo: Any = None, caption: str = "") -> Figure:
    """Five clients with private data around a server: models go down, updates come up.

    ``photo`` ``[c, h, w]`` is drawn on client 3's phone (the running case).
    """
    canvas, sheet = _sheet(4.35)
    _server(sheet, "server", "the global model")
    for place in range(5):
        _phone(sheet, place, photo=photo if place == 2 else None)
        _wire(sheet, place, down=True, shift=-0.11)
        _wire(sheet, place, down=False, shift=0.11)
    _key(sheet, 0.15, 4.05, COLOURS["server"], "the model goes down")
    _key(sheet, 0.15, 3.77, COLOURS["client"], "updates come up")
    sheet.add_patch(Circle((5.3, 4.05), 0.06, fc=COLOURS["private"], lw=0))
    sheet.text(5.44, 4.05, "private data stay", va="center", size=11.5)
    text = (
        "Five clients train one model. Their data (blue) stay on their phones; the server sends "
        "the model to each (grey arrows) and receives an update from each (blue arrows)."
    )
    alt = "A server above five phones; a grey arrow runs down to each and a blue one runs up."
    return Figure(canvas, alt=alt, caption=f"{text} {caption}".strip(), colours=256)


@house_style
def round_diagram(step: int, *, photo: Any = None) -> Figure:
    """One of the five steps of a round, 1 to 5: sample, send, train, return, average.

    Raises ``ValueError`` for another step.
    """
    if not 1 <= step <= len(ROUND_STEPS):
        raise ValueError(f"step={step}: a round has steps 1 to {len(ROUND_STEPS)}")
    canvas, sheet = _sheet(4.35)
    name, sentence = ROUND_STEPS[step - 1]
    sheet.text(0.15, 4.1, f"{step}  {name}", size=15, weight="bold", va="center")
    _server(sheet, "server", "")
    held = _GLOBAL if step < 5 else _GLOBAL + _mean_update()
    _row(sheet, SERVER[0], SERVER[1] - 0.16, held, COLOURS["server"])
    for place in range(5):
        chosen = place in COHORT
        _phone(sheet, place, photo=photo if place == 2 else None, faded=not chosen)
        if chosen:
            _step_of_client(sheet, place, step)
    if step == 5:
        _average(sheet)
    alt = f"Step {step} of a round, {name.lower()}: {sentence}"
    return Figure(canvas, alt=alt, caption=sentence, colours=256)


@house_style
def adversary_map(*, caption: str = "") -> Figure:
    """Where each adversary sits in a federation: five numbered vermilion marks."""
    canvas, sheet = _sheet(4.35)
    x, y = SERVER
    _server(sheet, "server", None)
    _collusion(sheet)
    names = {0: " ", 1: " ", 3: "malicious"}  # the colluders share a name, written below
    for place in range(5):
        _phone(sheet, place, name=names.get(place, ""))
        _wire(sheet, place, down=True, shift=-0.07, foot=1.78)  # clear of the colluders' box
        _wire(sheet, place, down=False, shift=0.07, foot=1.78)
    _attacker(sheet, 1, (x - 0.88, y), "curious server", "reads what it receives", "right")
    _attacker(sheet, 2, (x + 0.88, y), "malicious server", "sends what it likes", "left")
    _pin(sheet, 3, (CLIENTS_X[3], 0.76))
    _pin(sheet, 4, (5.36, 2.46))
    sheet.text(5.72, 2.54, "network", weight="bold", size=11.5, va="center")
    text = (
        "Where an adversary can sit. 1: a server that follows the protocol and reads what it "
        "receives; 2: a server that deviates; 3: clients that send what they like; 4: whoever "
        "carries the messages; 5: clients that pool what they know, with the server or without."
    )
    alt = (
        "A federation with five numbered attackers: two at the server, one client, wire, colluders."
    )
    return Figure(canvas, alt=alt, caption=f"{text} {caption}".strip())


@house_style
def privacy_stack(
    rows: Mapping[str, Mapping[str, float]] | Sequence[tuple[str, Mapping[str, float]]],
    *,
    adversaries: Sequence[str] | None = None,
    caption: str = "",
) -> Figure:
    """Layers against adversaries: a full dot protects, a half dot in part, a ring not at all.

    ``rows[layer][adversary]`` is 1, 0.5 or 0 (missing counts as 0); layers are drawn from the top.
    Raises ``ValueError`` for another figure.
    """
    table = dict(rows)
    columns = list(adversaries or dict.fromkeys(who for row in table.values() for who in row))
    step = 0.42 if all(len(layer) <= LAYER_WIDTH for layer in table) else 0.54
    height = 0.85 + step * len(table)
    canvas, sheet = _sheet(height)
    xs = np.linspace(3.15, SHEET - 0.52, len(columns))
    for x, who in zip(xs, columns, strict=True):
        sheet.text(x, height - 0.36, who.replace(" ", "\n", 1), ha="center", va="center", size=11.5,
                   linespacing=1.05)  # fmt: skip
    for number, (layer, covered) in enumerate(table.items()):
        y = height - 0.77 - step * (number + 0.5)
        if number % 2 == 0:
            sheet.add_patch(Rectangle((0.05, y - step / 2), SHEET - 0.1, step, fc="#F3F4F6"))
        name = textwrap.fill(layer, LAYER_WIDTH)
        sheet.text(0.15, y, name, va="center", size=11.5, linespacing=1.0)
        for x, who in zip(xs, columns, strict=True):
            _dot(sheet, x, y, covered.get(who, 0))
    closed = [layer for layer in table if any(table[layer].get(who, 0) == 1 for who in columns)]
    text = (
        "Does this layer alone protect against this adversary? Green dot: yes; half: in part; "
        f"ring: no. {len(closed)} of the {len(table)} layers stop at least one adversary for good: "
        f"{', '.join(closed) or 'none'}."
    )
    alt = f"A table of dots: {len(table)} layers of protection against {len(columns)} adversaries."
    return Figure(canvas, alt=alt, caption=f"{text} {caption}".strip())


# --- what the diagrams are made of --------------------------------------------------------------

_GLOBAL = np.array([0.2, 0.75, 0.45, 0.9, 0.3, 0.6])
_UPDATES = {
    1: np.array([0.4, -0.4, 0.1, -0.3, 0.3, -0.45]),
    2: np.array([-0.2, 0.25, -0.4, 0.1, -0.25, 0.4]),
    4: np.array([0.3, -0.15, 0.45, -0.45, 0.35, 0.0]),
}


def _mean_update() -> np.ndarray:
    """The weighted mean that step 5 adds."""
    total = sum(COUNTS[place] for place in COHORT)
    return sum((COUNTS[place] / total * _UPDATES[place] for place in COHORT), np.zeros(6))


def _sheet(height: float) -> tuple[Canvas, Axes]:
    """A sheet of paper, ``SHEET`` units wide, origin bottom left."""
    canvas = Canvas(figsize=(PAGE_WIDTH, height * PAGE_WIDTH / SHEET))
    sheet = canvas.add_axes((0, 0, 1, 1))
    sheet.set(xlim=(0, SHEET), ylim=(0, height), aspect="equal")
    sheet.set_axis_off()
    return canvas, sheet


def _box(
    sheet: Axes, x: float, y: float, w: float, h: float, edge: str, fill: str, **look: Any
) -> None:
    """A rounded box centred at ``(x, y)``."""
    shape = "round,pad=0,rounding_size=0.1"
    look = {"ec": edge, "fc": fill, "lw": 2, **look}
    sheet.add_patch(FancyBboxPatch((x - w / 2, y - h / 2), w, h, boxstyle=shape, **look))


def _server(sheet: Axes, name: str, note: str | None) -> None:
    """The server's box; its name stands in the middle where nothing goes below it (None)."""
    x, y = SERVER
    _box(sheet, x, y, 1.75, 0.86, COLOURS["server"], "#F3F4F6")
    lift = 0.0 if note is None else 0.19
    sheet.text(x, y + lift, name, ha="center", va="center", weight="bold", size=12)
    if note:
        sheet.text(x, y - 0.14, note, ha="center", va="center", size=11.5)


def _phone(
    sheet: Axes, place: int, *, photo: Any = None, faded: bool = False, name: str = ""
) -> None:
    """A client's phone with its private data: dots, or the photo of the running case."""
    x, y, alpha = CLIENTS_X[place], 0.98, 0.3 if faded else 1.0
    edge = COLOURS["client"]
    _box(sheet, x, y, 0.78, 1.16, edge, "white", alpha=alpha)
    bold = "bold" if name else "normal"
    sheet.text(x, 0.2, name or f"client {place + 1}", ha="center", va="center", weight=bold,
               size=11.5, alpha=max(alpha, 0.7))  # fmt: skip
    if photo is not None:
        limits = sheet.get_xlim(), sheet.get_ylim()
        sheet.imshow(to_picture(photo), extent=(x - 0.29, x + 0.29, y - 0.29, y + 0.29),
                     zorder=3, alpha=alpha)  # fmt: skip
        sheet.set(xlim=limits[0], ylim=limits[1])  # imshow moves them
    else:
        for k in range(COUNTS[place]):
            at = (x - 0.18 + 0.18 * (k % 3), y + 0.27 - 0.18 * (k // 3))
            sheet.add_patch(Circle(at, 0.06, fc=edge, lw=0, alpha=alpha))


def _ends(place: int, foot: float = 1.6) -> tuple[np.ndarray, np.ndarray]:
    """Where a wire meets the server, and where it meets the phone, at height ``foot``."""
    return np.array([SERVER[0] + 0.33 * (place - 2), 3.15]), np.array([CLIENTS_X[place], foot])


def _wire(sheet: Axes, place: int, *, down: bool, shift: float = 0.0, foot: float = 1.6) -> None:
    top, bottom = _ends(place, foot)
    side = np.array([shift, 0])
    start, end = (top, bottom) if down else (bottom, top)
    colour = COLOURS["server"] if down else COLOURS["client"]
    sheet.add_patch(FancyArrowPatch(start + side, end + side, arrowstyle="-|>", mutation_scale=14,
                                    color=colour, lw=2, shrinkA=3, shrinkB=3))  # fmt: skip


def _row(
    sheet: Axes, x: float, y: float, values: np.ndarray, colour: str, *, cell: float = 0.15
) -> None:
    """A row of numbers: one cell each, the larger the darker."""
    left = x - cell * len(values) / 2
    sheet.add_patch(Rectangle((left, y - cell / 2), cell * len(values), cell, fc="white", lw=0,
                              zorder=4))  # fmt: skip
    for k, value in enumerate(values):
        sheet.add_patch(Rectangle((left + k * cell, y - cell / 2), cell, cell, fc=colour, lw=0.8,
                                  ec="white", alpha=0.2 + 0.8 * value, zorder=5))  # fmt: skip
    sheet.add_patch(Rectangle((left, y - cell / 2), cell * len(values), cell, fill=False, ec=colour,
                              lw=1.2, zorder=6))  # fmt: skip


def _step_of_client(sheet: Axes, place: int, step: int) -> None:
    top, bottom = _ends(place)
    middle = 0.28 * top + 0.72 * bottom  # nearer to the phones, where the wires are apart
    x = CLIENTS_X[place]
    if step == 1:
        reach = 0.2 * top + 0.8 * bottom
        sheet.plot([top[0], reach[0]], [top[1], reach[1]], color=FAINT, lw=2, ls=(0, (2, 2)))
        sheet.text(x, 1.76, "takes part", ha="center", va="center", size=11.5,
                   bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none"})  # fmt: skip
    elif step == 2:
        _wire(sheet, place, down=True)
        _row(sheet, middle[0], middle[1], _GLOBAL, COLOURS["server"])
    elif step == 3:
        _row(sheet, x, 2.42, _GLOBAL, COLOURS["server"])
        sheet.add_patch(FancyArrowPatch((x, 2.34), (x, 1.88), arrowstyle="-|>", mutation_scale=14,
                                        color=INK, lw=1.8))  # fmt: skip
        sheet.text(x + 0.1, 2.12, "SGD", size=11.5, va="center")
        _row(sheet, x, 1.79, (_GLOBAL + _UPDATES[place]).clip(0, 1), COLOURS["client"])
    elif step == 4:
        _wire(sheet, place, down=False)
        _row(sheet, middle[0], middle[1], 0.5 + _UPDATES[place], COLOURS["client"])


def _average(sheet: Axes) -> None:
    """The updates of the cohort with their shares, between the server and the phones."""
    total = sum(COUNTS[place] for place in COHORT)
    for number, place in enumerate(COHORT):
        y = 2.78 - 0.3 * number
        share = f"{COUNTS[place]}/{total}"
        sheet.text(SERVER[0] - 0.62, y, f"{share} ×", ha="right", va="center", size=11.5)
        _row(sheet, SERVER[0], y, 0.5 + _UPDATES[place], COLOURS["client"])
        sheet.text(SERVER[0] + 0.62, y, f"client {place + 1}", va="center", size=11.5)
    _box(sheet, SERVER[0] + 0.02, 2.48, 3.3, 0.94, FAINT, "none", lw=1.2)
    sheet.text(SERVER[0] + 1.8, 2.48, "added to the\nglobal row", va="center", size=11.5)
    sheet.add_patch(FancyArrowPatch((SERVER[0], 2.95), (SERVER[0], 3.2), arrowstyle="-|>",
                                    mutation_scale=16, color=INK, lw=2))  # fmt: skip


def _key(sheet: Axes, x: float, y: float, colour: str, text: str) -> None:
    sheet.plot([x, x + 0.22], [y, y], color=colour, lw=3, solid_capstyle="butt")
    sheet.text(x + 0.3, y, text, va="center", size=11.5)


def _attacker(
    sheet: Axes, number: int, at: tuple[float, float], name: str, note: str, side: str
) -> None:
    """A numbered vermilion mark, with its name on one side of it."""
    _pin(sheet, number, at)
    x, y = at
    gap = 0.3
    places = {"left": (x + gap, y, "left"), "right": (x - gap, y, "right"),
              "above": (x, y + 0.29, "center")}  # fmt: skip
    tx, ty, align = places[side]
    lift = 0.1 if note else 0
    sheet.text(tx, ty + lift, name, ha=align, va="center", weight="bold", size=11.5)
    if note:
        sheet.text(tx, ty - 0.12, note, ha=align, va="center", size=11.5)


def _pin(sheet: Axes, number: int, at: tuple[float, float]) -> None:
    sheet.add_patch(Circle(at, 0.2, fc=COLOURS["attacker"], ec="white", lw=2, zorder=8))
    sheet.text(*at, str(number), color="white", weight="bold", ha="center", va="center_baseline",
               size=14, zorder=9)  # fmt: skip


def _collusion(sheet: Axes) -> None:
    """A dashed line around clients 1 and 2, who pool what they know."""
    middle = (CLIENTS_X[0] + CLIENTS_X[1]) / 2
    sheet.text(middle, 0.2, "colluders", weight="bold", size=11.5, ha="center", va="center")
    _pin(sheet, 5, (middle, 0.98))
    _box(sheet, middle, 0.855, 2.5, 1.61, COLOURS["attacker"], "#FDF1EA",
         lw=1.6, ls=(0, (4, 3)))  # fmt: skip


def _dot(sheet: Axes, x: float, y: float, part: float) -> None:
    if part not in (0, 0.5, 1):
        raise ValueError(f"a layer protects 1 (fully), 0.5 (in part) or 0 (not at all), not {part}")
    green = COLOURS["defence"]
    sheet.add_patch(Circle((x, y), 0.115, fc=green if part == 1 else "white",
                           ec=green if part else "#9CA3AF", lw=1.6))  # fmt: skip
    if part == 0.5:
        angle = np.linspace(np.pi / 2, 3 * np.pi / 2, 40)
        sheet.fill(x + 0.115 * np.cos(angle), y + 0.115 * np.sin(angle), color=green, lw=0)
