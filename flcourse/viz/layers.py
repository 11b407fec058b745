"""Figures of one gradient, layer by layer: signs, equations against unknowns, residuals.

Chapters 04 and 05.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, NullLocator

from flcourse.viz.base import (
    COLOURS,
    FAINT,
    PAGE_WIDTH,
    Figure,
    house_style,
    join,
    new_figure,
    to_array,
)


@house_style
def gradient_by_class(
    bias_gradient: Any,
    names: Sequence[str] | None = None,
    *,
    truth: Any = None,
    caption: str = "",
) -> Figure:
    """The last layer's bias gradient, one bar a class; negative ones marked, as the sign rule says.

    ``bias_gradient`` ``[k]``; ``names`` of the classes (default: their numbers); ``truth`` the true
    label, or labels, to be named in the caption. Up to 14 classes lie in rows, more stand in
    columns and only the negative ones are named.
    """
    values = to_array(bias_gradient).astype(float)
    labels = [str(name) for name in (names or range(len(values)))]
    if len(labels) != len(values):
        raise ValueError(f"{len(values)} gradients, but {len(labels)} names")
    negative = np.flatnonzero(values < 0)
    colours = [COLOURS["attacker"] if v < 0 else COLOURS["server"] for v in values]
    few = len(values) <= 14
    canvas, axes = new_figure(PAGE_WIDTH, 0.9 + 0.29 * len(values) if few else 3.4)
    places = np.arange(len(values))
    if few:
        axes.barh(places, values, color=colours, height=0.68)
        axes.set(ylim=(len(values) - 0.4, -0.6), xlabel="gradient of the class's bias")
        axes.set_yticks(places, labels)
        axes.grid(axis="y", visible=False)
    else:
        axes.bar(places, values, color=colours, width=0.85)
        axes.set(xlabel="class", ylabel="gradient of the bias")
        axes.margins(x=0.01, y=0.12)
        axes.grid(axis="x", visible=False)
    (axes.axvline if few else axes.axhline)(0, color="#374151", lw=1)
    for k in negative[np.argsort(values[negative])][:8]:
        word = f"{values[k]:+.3f}".replace("-", "−")
        if few:
            axes.annotate(word, (0, k), xytext=(5, 0), textcoords="offset points", va="center")
        else:
            axes.annotate(labels[k], (k, values[k]), xytext=(0, -3), textcoords="offset points",
                          ha="center", va="top")  # fmt: skip
    found = ", ".join(labels[k] for k in negative[:8]) or "none"
    text = f"The bias gradient of {len(values)} classes. Negative: {found}."
    if truth is not None:
        true = np.unique(np.atleast_1d(to_array(truth)).astype(int))
        held = ", ".join(labels[k] for k in true)
        text += f" True: {held}, so the sign gives {_verdict(set(negative), set(true))}."
    alt = f"Bars of the bias gradient by class; negative for {found}."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _verdict(found: set[int], true: set[int]) -> str:
    if found == true:
        return "the label away" if len(true) == 1 else "every label away"
    missed, wrong = len(true - found), len(found - true)
    return f"{len(true & found)} of {len(true)} labels ({missed} missed, {wrong} wrong)"


@house_style
def layer_protocol(layers: Sequence[Any], *, caption: str = "") -> Figure:
    """How exactly each layer was solved: its relative residual on a logarithmic axis.

    ``layers`` as in ``Recovery.layers`` (``name``, ``what``, ``residual``), or such triples, in the
    order in which the attack goes: from the last layer back to the picture. Residuals below
    1e-17, zero too, stand at the left end.
    """
    rows = [_parts(layer, ("name", "what", "residual")) for layer in layers]
    values = np.array([float(row[2]) for row in rows])
    drawn = np.maximum(np.nan_to_num(values, nan=1.0), _EXACT)
    texts = [textwrap.wrap(f"{name}: {what}", _LINE) for name, what, _ in rows]
    # Each layer takes the height of its text and of its stroke, in lines.
    ends = np.cumsum([len(lines) + 1.0 for lines in texts])
    canvas, axes = new_figure(PAGE_WIDTH, 0.75 + 0.27 * float(ends[-1]))
    axes.set_xscale("log")
    places = ends - 0.6
    axes.hlines(places, _EXACT / 3, drawn, color=COLOURS["attacker"], lw=2, alpha=0.5)
    axes.plot(drawn, places, "o", color=COLOURS["attacker"], ms=8)
    for place, value, lines, end in zip(places, values, texts, drawn, strict=True):
        axes.text(0.0, place - 0.4, "\n".join(lines), va="bottom", size=11.5, linespacing=1.15,
                  transform=axes.get_yaxis_transform())  # fmt: skip
        axes.annotate(_scientific(float(value)), (end, place), xytext=(9, 0), size=11.5,
                      textcoords="offset points", va="center")  # fmt: skip
    axes.set(xlim=(_EXACT / 3, max(float(drawn.max()) * 300, 1.0)), yticks=[])
    axes.set(ylim=(ends[-1] + 0.1, -0.2), xlabel="relative residual (0 is exact)")
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_minor_locator(NullLocator())
    worst = int(np.argmax(drawn))
    text = (
        f"{len(rows)} layers solved one after the other, the last layer first. The residual says "
        f"how well the equations of a layer hold for what was found; largest "
        f"{_scientific(float(values[worst]))}, at {rows[worst][0]}."
    )
    alt = f"Relative residual of {len(rows)} layers on a logarithmic axis."
    return Figure(canvas, alt=alt, caption=join(text, caption))


_EXACT = 1e-17
_LINE = 70  # characters of 11.5 pt in the width of the page


@house_style
def equations_and_unknowns(rows: Sequence[Any], *, caption: str = "") -> Figure:
    """For each layer, how many equations its gradient gives for how many unknowns.

    ``rows`` are those of ``attacks.explain``, or triples ``(name, equations, unknowns)``, where
    equations may be None: the algebra stopped there, or did not come so far. A logarithmic axis;
    where there are fewer equations than unknowns, their dot is amber.
    """
    parts = [_counts(row) for row in rows]
    canvas, axes = new_figure(PAGE_WIDTH, 0.85 + 0.56 * len(parts))
    axes.set_xscale("log")
    numbers = [count for _, *counts in parts for count in counts if count]
    least, most = min(numbers), max(numbers)
    across = {"transform": axes.get_yaxis_transform(), "va": "bottom"}
    short = []
    for place, (name, equations, unknowns) in enumerate(parts):
        lacking = (equations or 0) < unknowns
        short += [name] if lacking else []
        colour = COLOURS["warning"] if lacking else COLOURS["attacker"]
        axes.hlines(place, min(equations or unknowns, unknowns), max(equations or 0, unknowns),
                    color=FAINT, lw=3, zorder=1)  # fmt: skip
        axes.plot(unknowns, place, "o", color=COLOURS["private"], ms=10, zorder=2)
        if equations:
            axes.plot(equations, place, "D", color=colour, ms=7, zorder=3)
        said = f"{equations:,} equations" if equations else "not solved"
        axes.text(0.0, place - 0.2, name, weight="bold", **across)
        axes.text(1.0, place - 0.2, f"{said}, {unknowns:,} unknowns", ha="right",
                  size=11.5, **across)  # fmt: skip
    axes.set(xlim=(least / 2, most * 2), ylim=(len(parts) - 0.55, -0.85), yticks=[])
    axes.set_xlabel("count (diamond: equations, circle: unknowns)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    text = (
        "Equations (diamonds): what a layer's gradient and its output say about its input. "
        "Unknowns (circles): the values of that input. Fewer equations than unknowns, or not "
        f"solved: {', '.join(short) or 'no layer'}."
    )
    alt = f"Pairs of dots for equations and unknowns for {len(parts)} layers."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _counts(row: Any) -> tuple[str, int | None, int]:
    if hasattr(row, "layer"):
        return str(row.layer), row.equations, row.unknowns
    name, equations, unknowns = _parts(row, ("name", "equations", "unknowns"))
    return str(name), equations, unknowns


def _parts(row: Any, names: tuple[str, str, str]) -> tuple[Any, Any, Any]:
    if isinstance(row, Mapping):
        first, second, third = (row[name] for name in names)
    elif isinstance(row, Sequence):
        first, second, third = row
    else:
        first, second, third = (getattr(row, name) for name in names)
    return first, second, third


def _scientific(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}".replace("-", "−")
