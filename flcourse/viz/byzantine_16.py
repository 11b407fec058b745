"""Figures of lies against rules: the matrix, one row of it, what a rule costs against the mean.

Chapter 16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from flcourse.viz.base import (
    COLOURS,
    FAINT,
    INK,
    PAGE_WIDTH,
    SERIES,
    Figure,
    house_style,
    join,
    new_figure,
    to_array,
)

Table = Mapping[str, Mapping[str, Any]]  # table[attack][rule]: one value a seed; absent: undefined

# As names stand beside a figure; options that are not here are written out.
SHORT = {
    "none": "nobody lies",
    "constant:value=nan": "not a number",
    "constant:value=100": "constant 100",
    "gaussian:std=1": "noise, σ = 1",
    "label_flip": "labels flipped",
    "sign_flip": "flip",
    "sign_flip:scale=5": "flip ×5",
    "alie": "ALIE",
    "alie:z=1.5": "ALIE, z = 1.5",
    "ipm:scale=0.5": "IPM 0.5",
    "ipm:scale=5": "IPM 5",
    "min_max": "min-max",
    "min_sum": "min-sum",
    "stealth_suppression": "suppression, stealthy",
    "coordinate_median": "median",
    "trimmed_mean": "trimmed mean",
    "trimmed_mean:num_byzantine=0": "10 % trimmed",
    "constant:value=0.01": "constant 0.01",
    "sign_flip:scale=10": "flip ×10",
    "krum": "Krum",
    "multi_krum": "multi-Krum",
    "bulyan": "Bulyan",
    "geometric_median": "geometric median",
    "centered_clipping": "centred clipping",
    "norm_filter": "norm filter",
    "cluster_filter": "cluster filter",
    "fltrust": "FLTrust",
    "nearest_neighbour_mixing+trimmed_mean": "mixing + trimmed",
    "bucketing:size=2+coordinate_median": "buckets + median",
}
# Low is the attacker's, high the defence's; readable under ink. Most of the scale lies above 70 %,
# where rules differ.
_SCALE = LinearSegmentedColormap.from_list(
    "lies",
    [(0, "#F0A27A"), (0.6, "#FBE3D4"), (0.8, "#FFFFFF"), (0.88, "#D8F0E8"), (1, "#7FCDB2")],
)


def short(name: str) -> str:
    """A lie's or rule's name as it stands beside a figure."""
    return SHORT.get(name, name.replace("_", " "))


@house_style
def lie_rule_matrix(
    table: Table,
    *,
    measure: str = "accuracy",
    best: float = 1.0,
    title: str = "",
    caption: str = "",
) -> Figure:
    """A heat map: lies down, rules across, the mean over seeds in each cell.

    ``table[attack][rule]`` holds one value a seed: accuracies in [0, 1], written as percent
    (``measure="accuracy"``), or cosines in [−1, 1], written as hundredths (``"cosine"``). A cell
    that is absent or empty is hatched: the rule is not defined there. ``best`` is where the colours
    end: what one may hope for.
    """
    rules = list(dict.fromkeys(rule for row in table.values() for rule in row))
    means, spreads = _means(table, rules)
    canvas, axes = new_figure(PAGE_WIDTH, 1.75 + 0.345 * len(table) + 0.3 * bool(title))
    low = 0 if measure == "accuracy" else -1
    axes.imshow(means, cmap=_SCALE, norm=Normalize(100 * low, 100 * best), aspect="auto")
    for (row, column), value in np.ndenumerate(means):
        _cell(axes, row, column, value)
    axes.set_xticks(range(len(rules)), [short(rule) for rule in rules], rotation=90)
    axes.set_yticks(range(len(table)), [short(attack) for attack in table])
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title)
    unit = "points" if measure == "accuracy" else "hundredths"
    written = "percent" if measure == "accuracy" else "hundredths"
    seeds = max((len(to_array(v)) for row in table.values() for v in row.values()), default=0)
    over = (
        f"mean over {seeds} seeds. Standard deviation over seeds: {np.nanmedian(spreads):.0f} "
        f"{unit} in the median cell, {np.nanmax(spreads):.0f} in the widest."
    )
    text = join(
        f"{measure.capitalize()} in {written}, lies down, rules across;",
        over if seeds > 1 else "one seed.",
        "Hatched: the rule is not defined." if np.isnan(means).any() else "",
    )
    said = [
        f"{short(attack)}: " + ", ".join(_words(rules, row)) + "."
        for attack, row in zip(table, means, strict=True)
    ]
    alt = f"Heat map of {measure} ({written}) for each lie and rule. {' '.join(said)}"
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def rules_under_lie(
    tables: Mapping[str, Table],
    attack: str,
    *,
    measure: str = "accuracy",
    reference: str = "mean",
    caption: str = "",
) -> Figure:
    """One lie against all rules: a dot for each seed, a bar for their mean, a panel for each table.

    A line marks what ``reference`` reaches when nobody lies.
    """
    panels = list(tables.items())
    canvas, made = new_figure(PAGE_WIDTH, 4.6, columns=len(panels), sharey=True)
    said = []
    for axes, (name, table) in zip(np.atleast_1d(made), panels, strict=True):
        names = list(table["none"])
        for row, rule in enumerate(names):
            _dots(axes, row, table[attack].get(rule))
        honest = 100 * float(np.mean(to_array(table["none"][reference])))
        axes.axvline(honest, color=COLOURS["server"], lw=1.6, ls=(0, (4, 3)))
        axes.set_yticks(range(len(names)), [short(rule) for rule in names])
        axes.set(xlabel=f"{measure} (%)", ylim=(len(names) - 0.5, -0.5), title=name)
        axes.set_xlim(0 if measure == "accuracy" else -100, 102)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        means = [
            f"{short(rule)} {100 * np.mean(to_array(v)):.0f}"
            if len(to_array(v))
            else f"{short(rule)} not defined"
            for rule, v in table[attack].items()
        ]
        said.append(f"{name}: {', '.join(means)}; {reference} without liars {honest:.0f}")
    text = (
        f"Under “{short(attack)}”: {measure} in percent, one dot a seed, the bar is their mean. "
        f"Dashed: the plain {reference} when nobody lies. {'. '.join(said)}."
    )
    alt = f"Dots for each rule under the lie “{short(attack)}”, in {len(panels)} panel(s)."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def worse_than_the_mean(table: Table, *, noise: float = 0.0, caption: str = "") -> Figure:
    """For each rule: in how many rows it beats the plain mean, and in how many it loses to it.

    A row counts where the mean difference over seeds, each seed against itself, is more than
    ``noise`` points.
    """
    rules = [rule for rule in table["none"] if rule != "mean"]
    gains = {rule: _gains(table, rule) for rule in rules}
    order = sorted(rules, key=lambda rule: np.median(gains[rule]))
    canvas, axes = new_figure(PAGE_WIDTH, 0.75 + 0.36 * len(rules))
    for row, rule in enumerate(order):
        for value in gains[rule]:
            colour = COLOURS["defence"] if value > 0 else COLOURS["attacker"]
            face = colour if abs(value) > noise else "white"
            axes.plot(value, row, "o", ms=7, mfc=face, mec=colour, alpha=0.85)
    axes.axvline(0, color=INK, lw=1.2)
    axes.set_yticks(range(len(order)), [short(rule) for rule in order])
    axes.set(xlabel="points above or below the plain mean")
    axes.grid(axis="y", visible=False)
    said = [
        f"{short(rule)} better in {sum(v > noise for v in gains[rule])}, "
        f"worse in {sum(v < -noise for v in gains[rule])}"
        for rule in reversed(order)
    ]
    text = (
        f"Each dot is a row of the matrix ({len(table)} in all): the rule's accuracy less the "
        f"plain mean's, seed against seed, averaged. Hollow: at most {noise:g} points either way. "
        f"{'; '.join(said)}."
    )
    alt = "Dots for each rule: points of accuracy gained or lost against the plain mean, by lie."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def lies_among_rows(
    crowds: Mapping[str, Mapping[str, Any]], lies: Sequence[str], *, caption: str = ""
) -> Figure:
    """Honest rows and lies by what a server can see of them: direction and length.

    ``crowds[name]`` maps ``"honest"`` to points ``[n, 2]`` and each lie to one point: the cosine
    with the honest mean, and the length over the median honest length.
    """
    canvas, made = new_figure(PAGE_WIDTH, 4.3, columns=len(crowds), sharey=True, sharex=True)
    said = []
    for axes, (name, crowd) in zip(np.atleast_1d(made), crowds.items(), strict=True):
        honest = to_array(crowd["honest"]).astype(float)
        axes.plot(*honest.T, "o", color=COLOURS["client"], ms=7, alpha=0.75)
        for place, lie in enumerate(lies):
            x, y = (float(value) for value in to_array(crowd[lie]))
            axes.plot(x, y, "X", color=COLOURS["attacker"], ms=9, zorder=4)
            side = -1 if x > -0.2 else 1
            axes.annotate(
                short(lie), (x, y), xytext=(9 * side, 3 if place % 2 else -3),
                textcoords="offset points", ha="right" if side < 0 else "left",
                va="bottom" if place % 2 else "top", fontsize=11, zorder=5,
            )  # fmt: skip
        axes.set(yscale="log", title=name, xlabel="cosine with the honest mean", xlim=(-1.1, 1.1))
        axes.set_xticks([-1, 0, 1])
        axes.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.12)
        low, high = honest[:, 0].min(), honest[:, 0].max()
        said.append(f"{name}: honest cosines from {low:.2f} to {high:.2f}")
    np.atleast_1d(made)[0].set_ylabel("length over the median honest one")
    text = (
        "Updates of one round, honest ones as dots, lies as crosses, by their angle to the honest "
        f"mean and their length. {'; '.join(said)}."
    )
    alt = f"Scatter of honest rows and the lies {', '.join(map(short, lies))}: angle and length."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def price_of_a_lie(
    found: Mapping[str, Table], attack: str, *, mark: float = 10.0, caption: str = ""
) -> Figure:
    """Points of accuracy that one lie costs each rule, a line for each setting, a dot a seed."""
    rules = list(next(iter(found.values()))["none"])
    colours = dict(zip(rules, (COLOURS["server"], *SERIES), strict=False))
    canvas, axes = new_figure(PAGE_WIDTH, 1.2 + 0.5 * len(found))
    said = []
    for row, (name, table) in enumerate(found.items()):
        told = []
        for place, rule in enumerate(rules):
            lost = 100 * (to_array(table["none"][rule]) - to_array(table[attack][rule]))
            y = row + 0.25 * (place - (len(rules) - 1) / 2)
            axes.plot(lost, [y] * len(lost), "o", color=colours[rule], ms=5, alpha=0.6)
            axes.plot([lost.mean()] * 2, [y - 0.1, y + 0.1], color=colours[rule], lw=3)
            told.append(f"{short(rule)} {round(lost.mean())}")
        said.append(f"{name}: {', '.join(told)}")
    for rule in rules:
        axes.plot([], [], "o", color=colours[rule], label=short(rule))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncol=3, frameon=False, fontsize=11)
    axes.axvline(0, color=INK, lw=1.2)
    axes.axvline(mark, color=COLOURS["attacker"], lw=1.6, ls=(0, (4, 3)))
    axes.set_yticks(range(len(found)), list(found))
    axes.set(xlabel="points of accuracy lost to the lie", ylim=(len(found) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    text = (
        f"Points that “{short(attack)}” costs, seed against the same seed without liars; a dot a "
        f"seed, the bar their mean. Dashed: {mark:g} points. {'; '.join(said)}."
    )
    alt = f"Points of accuracy lost to “{short(attack)}” for {', '.join(map(short, rules))}."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _means(table: Table, rules: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in hundredths ``[attacks, rules]``; NaN where undefined."""
    shape = len(table), len(rules)
    means, spreads = np.full(shape, np.nan), np.full(shape, np.nan)
    for row, cells in enumerate(table.values()):
        for column, rule in enumerate(rules):
            values = 100 * to_array(cells.get(rule, [])).astype(float)
            if values.size:
                means[row, column], spreads[row, column] = values.mean(), values.std()
    return means, spreads


def _cell(axes: Axes, row: int, column: int, value: float) -> None:
    if np.isnan(value):
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="///", ec=FAINT, lw=0))
        return
    text = f"{value:.0f}".replace("-", "−")
    size = 11 if len(text) < 4 else 9  # "−100" in one of thirteen columns
    axes.text(column, row, text, ha="center", va="center", fontsize=size)


def _words(rules: Sequence[str], row: np.ndarray) -> list[str]:
    return [
        f"{short(rule)} {'undefined' if np.isnan(value) else f'{value:.0f}'}"
        for rule, value in zip(rules, row, strict=True)
    ]


def _dots(axes: Axes, row: int, values: Any) -> None:
    if values is None or not len(to_array(values)):
        axes.text(2, row, "not defined", va="center", fontsize=10.5)
        return
    shown = 100 * to_array(values).astype(float)
    axes.barh(row, shown.mean(), height=0.62, color=COLOURS["defence"], alpha=0.35)
    axes.plot(shown, [row] * len(shown), "o", color=COLOURS["defence"], ms=5, alpha=0.8)


def _gains(table: Table, rule: str) -> list[float]:
    """Points gained over the plain mean under each lie, seed against seed."""
    return [
        100 * float(np.mean(to_array(cells[rule]) - to_array(cells["mean"])))
        for cells in table.values()
        if len(to_array(cells.get(rule, []))) == len(to_array(cells["mean"]))
    ]
