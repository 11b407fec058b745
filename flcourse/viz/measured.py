"""Figures of attacks measured over seeds and settings: success, sweeps, tables. Chapters 03-06.

Spread is always drawn: one dot a run, or quartiles. The floor is the PSNR of a flat picture in the
true mean colour.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from flcourse.viz.base import (
    COLOURS,
    PAGE_WIDTH,
    Figure,
    HtmlFigure,
    finite,
    house_style,
    join,
    label_ends,
    new_figure,
    series_colours,
    to_array,
)

MARGIN = 3.0  # dB above its floor that a success needs, as in attacks.scoring.succeeded


@house_style
def success_over_seeds(
    psnr: Mapping[str, Any], floors: Any, *, threshold: float = 20.0, caption: str = ""
) -> Figure:
    """One dot for each run, one row for each method, with its success rate and median PSNR.

    ``psnr[method]`` in dB, one value a run; ``floors`` one value, or one for each run. A success
    scores above ``threshold`` and at least 3 dB above its floor. Exact pictures (infinite PSNR)
    stand at the right end.
    Raises ``ValueError`` if a method has another number of runs than there are floors.
    """
    tables = {name: to_array(values).astype(float).reshape(-1) for name, values in psnr.items()}
    bound = to_array(floors).astype(float).reshape(-1)
    finite = np.concatenate([values[np.isfinite(values)] for values in tables.values()])
    top = 5 * math.ceil((max(finite.max(initial=threshold), threshold) + 3) / 5)
    canvas, axes = new_figure(PAGE_WIDTH, 0.95 + 0.78 * len(tables))
    axes.axvspan(bound.min(), bound.max(), color=COLOURS["server"], alpha=0.18, lw=0)
    axes.axvline(float(np.median(bound)), color=COLOURS["server"], lw=1.4, ls=(0, (4, 3)))
    axes.axvline(threshold, color="#374151", lw=1.2, ls=(0, (1, 2)))
    said = []
    for row, (name, values) in enumerate(tables.items()):
        rate = float(np.mean(_succeeded(name, values, bound, threshold)))
        median = float(np.median(values))
        stats = f"{100 * rate:.0f} %, median {median:.0f} dB"
        said.append(f"{name}: {stats} ({len(values)} runs)")
        _dots(axes, np.minimum(values, top), row)
        axes.plot([min(median, top)] * 2, [row - 0.27, row + 0.27], color="#374151", lw=2.4)
        across = {"transform": axes.get_yaxis_transform(), "va": "bottom", "bbox": _PAPER}
        axes.text(0.0, row - 0.36, name, weight="bold", **across)
        axes.text(1.0, row - 0.36, stats, ha="right", **across)
    above = {"transform": axes.get_xaxis_transform(), "va": "bottom", "size": 11.5}
    axes.text(threshold, 1.0, "floor ", ha="right", **above)
    axes.text(threshold, 1.0, " success →", **above)
    axes.set(xlim=(0, top + 1), ylim=(len(tables) - 0.55, -0.75), yticks=[], xlabel="PSNR (dB)")
    axes.spines["left"].set_visible(False)
    text = (
        f"One dot is one run; the stroke is the median. A success lies above {threshold:g} dB "
        f"(dotted) and {MARGIN:g} dB above its floor. {'; '.join(said)}. Grey: the score of a flat "
        f"picture, {_span(bound)} dB."
    )
    alt = f"PSNR of every run of {', '.join(tables)} as dots, with success rates and medians."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _succeeded(name: str, values: np.ndarray, floors: np.ndarray, threshold: float) -> np.ndarray:
    if len(floors) not in (1, len(values)):
        raise ValueError(f"{name!r} has {len(values)} runs, but there are {len(floors)} floors")
    return (values > threshold) & (values >= floors + MARGIN)


def _dots(axes: Axes, values: np.ndarray, row: int) -> None:
    """Dots of one row; runs that follow each other in rank stand at different heights."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    heights = row + np.array([0.0, 0.14, -0.14, 0.07, -0.07])[rank % 5]
    axes.plot(values, heights, "o", color=COLOURS["attacker"], ms=6, alpha=0.65, mew=0)


_PAPER = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8}


@house_style
def sweep(
    series: Mapping[str, Mapping[Any, Any]],
    xlabel: str,
    ylabel: str = "PSNR (dB)",
    *,
    floor: Any = None,
    log_x: bool = False,
    colours: Mapping[str, str] | None = None,
    caption: str = "",
) -> Figure:
    """Medians against a setting, one line a series, with the band between the quartiles.

    ``series[name][x]`` holds the values of all runs at ``x`` (a number, or its text, as JSON keeps
    it); one value alone is drawn without a band. ``floor`` is a value, or ``{x: value}``.
    ``log_x`` wants positive ``x``. The ticks are the settings that were run. An exact picture
    (infinite PSNR) counts as 150 dB, where float32 ends.
    """
    tables = {name: _by_setting(values) for name, values in series.items()}
    chosen = colours or series_colours(tables)
    canvas, axes = new_figure(PAGE_WIDTH, 3.9)
    if log_x:
        axes.set_xscale("log")
    settings = sorted({x for table in tables.values() for x in table})
    ends, said = [], []
    for name, table in tables.items():
        x = np.array(list(table))
        low, middle, high = (np.array([np.quantile(v, q) for v in table.values()]) for q in _Q)
        axes.fill_between(x, low, high, color=chosen[name], alpha=0.18, lw=0)
        axes.plot(x, middle, "o-", color=chosen[name], ms=5)
        ends.append((x[-1], middle[-1], name, chosen[name]))
        said.append(f"{name}: {middle[0]:.3g} at {x[0]:g}, {middle[-1]:.3g} at {x[-1]:g}")
    if floor is not None:
        level = _by_setting(floor if isinstance(floor, Mapping) else dict.fromkeys(settings, floor))
        heights = [float(np.median(values)) for values in level.values()]
        axes.plot(list(level), heights, color=COLOURS["server"], lw=1.6, ls=(0, (4, 3)))
        ends.append((list(level)[-1], heights[-1], "floor", COLOURS["server"]))
    if min(values.min() for table in tables.values() for values in table.values()) >= 0:
        axes.set_ylim(bottom=0)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(settings[0], settings[-1]))
    _tick_settings(axes, settings, log_x)
    canvas.draw_without_rendering()
    label_ends(axes, ends)
    runs = [len(values) for table in tables.values() for values in table.values()]
    spread = f"Lines: median of {_whole(runs)} runs; bands: quartiles." if max(runs) > 1 else ""
    text = f"{ylabel} against {xlabel}, medians: {'; '.join(said)}. {spread}".strip()
    text += " Dashed: a flat picture." if floor is not None else ""
    alt = f"Line chart of {ylabel} against {xlabel} for {', '.join(tables)}, with quartiles."
    return Figure(canvas, alt=alt, caption=join(text, caption))


_Q = (0.25, 0.5, 0.75)


def _by_setting(values: Mapping[Any, Any]) -> dict[float, np.ndarray]:
    table = {float(x): finite(np.atleast_1d(to_array(v)).astype(float)) for x, v in values.items()}
    return dict(sorted(table.items()))


def _tick_settings(axes: Axes, settings: Sequence[float], log_x: bool) -> None:
    """Ticks where something was run, leaving out those that would touch their neighbour."""
    place = np.log(settings) if log_x else np.array(settings)
    gap = 0.075 * (place[-1] - place[0])
    kept = [len(settings) - 1]
    for index in range(len(settings) - 2, -1, -1):
        if place[kept[-1]] - place[index] >= gap:
            kept.append(index)
    axes.set_xticks([settings[index] for index in reversed(kept)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


@house_style
def label_and_picture(
    label_success: Mapping[str, float],
    psnr_quartiles: Mapping[str, Sequence[float]],
    floor: float,
    *,
    caption: str = "",
) -> Figure:
    """Under each defence: how often the label is read (left) and what the picture scores (right).

    ``label_success[defence]`` in [0, 1]; ``psnr_quartiles[defence] = (lower, median, upper)`` in
    dB; ``floor`` in dB. The label outlives the picture where left is full and right at the floor.
    Raises ``ValueError`` if the two name different defences.
    """
    if set(label_success) != set(psnr_quartiles):
        raise ValueError(f"labels under {list(label_success)}, pictures {list(psnr_quartiles)}")
    names = list(label_success)
    rows = np.arange(len(names))
    shares = 100 * np.array([label_success[name] for name in names])
    low, middle, high = np.array([psnr_quartiles[name] for name in names], dtype=float).T
    canvas, (left, right) = new_figure(PAGE_WIDTH, 1.5 + 0.36 * len(names), columns=2, sharey=True)
    left.barh(rows, shares, color=COLOURS["attacker"], height=0.62)
    for row, share in zip(rows, shares, strict=True):
        left.annotate(f"{share:.0f} %", (share, row), xytext=(4, 0), size=11.5,
                      textcoords="offset points", va="center")  # fmt: skip
    left.set(title="label read", xlabel="runs (%)", xlim=(0, 135), xticks=(0, 50, 100))
    right.hlines(rows, low, high, color=COLOURS["attacker"], lw=6, alpha=0.4)
    right.plot(middle, rows, "o", color=COLOURS["attacker"], ms=7)
    right.axvline(floor, color=COLOURS["server"], lw=1.6, ls=(0, (4, 3)))
    right.set(title="picture", xlabel="PSNR (dB)", xlim=(0, max(high.max(), floor) * 1.08))
    right.text(floor, len(names) - 0.1, " floor", va="center", size=11.5)
    left.set_yticks(rows, names)
    left.set_ylim(len(names) + 0.3, -0.6)
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    outlives = [n for n, s, m in zip(names, shares, middle, strict=True)
                if s >= 90 and m < floor + MARGIN]  # fmt: skip
    text = (
        f"Left: share of runs in which the label was read. Right: median PSNR with quartiles; "
        f"dashed, a flat picture ({floor:.1f} dB). Picture gone (less than {MARGIN:g} dB above the "
        f"floor), label still read in 90 % of runs or more: {', '.join(outlives) or 'nowhere'}."
    )
    alt = f"For {len(names)} defences, bars of label success beside the PSNR of the picture."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def attack_table(
    rows: Mapping[str, Mapping[str, Any]], *, reference: str | None = None, caption: str = ""
) -> HtmlFigure:
    """A table of attacks: PSNR (median, quartiles, least), successes, floor, labels, CPU time.

    ``rows[method]`` is what ``attacks.scoring.summary`` returns, with ``seconds`` (median CPU
    seconds of a run) added where the cost is shown, as a ratio to that of ``reference`` (default:
    the first row), because seconds differ between machines. Raises ``ValueError`` without rows.
    """
    if not rows:
        raise ValueError("a table without rows: give {method: summary}")
    base = rows[reference or next(iter(rows))].get("seconds")
    timed = bool(base)
    labelled = any(row.get("label_match") is not None for row in rows.values())
    heads = ["method", "pictures", "success", "PSNR (dB)", "quartiles", "least", "SSIM", "floor"]
    heads += ["label"] * labelled + ["CPU time"] * timed
    lines = []
    for name, row in rows.items():
        cells = [name, f"{row['n']}", f"{100 * row['success']:.0f} %", f"{row['psnr']:.1f}"]
        cells += [f"{row['psnr_low']:.1f}–{row['psnr_high']:.1f}", f"{row['psnr_min']:.1f}"]
        cells += [f"{row['ssim']:.2f}", f"{row['floor']:.1f}"]
        if labelled:
            match = row.get("label_match")
            cells.append("–" if match is None else f"{100 * match:.0f} %")
        if timed:
            cells.append(_ratio(row.get("seconds"), base or 0.0))
        lines.append(cells)
    body = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:400">{html.escape(cells[0])}</th>'
        + "".join(f'<td style="text-align:right">{html.escape(cell)}</td>' for cell in cells[1:])
        + "</tr>"
        for cells in lines
    )
    head = "".join(
        f'<th scope="col" style="text-align:{"right" if place else "left"}">{text}</th>'
        for place, text in enumerate(heads)
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    # On a phone the table scrolls sideways: with tabindex, also by keyboard.
    scrolls = 'style="overflow-x:auto" tabindex="0" role="region" aria-label="Table of attacks"'
    page = f"<div {scrolls}>{table}</div>"
    best = max(rows, key=lambda name: rows[name]["psnr"])
    note = (
        "PSNR is the median over all pictures and seeds; a success scores above 20 dB and "
        f"{MARGIN:g} dB above its floor. Best median: {best}, {rows[best]['psnr']:.1f} dB."
    )
    if timed:
        note += f" CPU time: relative to {reference or next(iter(rows))}."
    text = "\n".join(" | ".join(cells) for cells in (heads, *lines))
    return HtmlFigure(page, text=text, caption=join(note, caption))


def _ratio(seconds: float | None, base: float) -> str:
    if seconds is None:
        return "–"
    return f"{seconds / base:.2g} ×" if seconds >= base else f"1/{base / seconds:.3g}"


def _span(values: np.ndarray) -> str:
    low, high = f"{values.min():.1f}", f"{values.max():.1f}"
    return low if low == high else f"{low}–{high}"


def _whole(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"
