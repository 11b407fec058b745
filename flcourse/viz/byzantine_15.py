"""Figures of liars and averages: one row that moves a mean, turning points, pulls, breakdown.

Chapter 15.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from flcourse.viz.base import (
    COLOURS,
    FAINT,
    INK,
    PAGE_WIDTH,
    SERIES,
    Figure,
    house_style,
    join,
    label_ends,
    new_figure,
    to_array,
)

_RULES = (*(colour for colour in SERIES if colour != COLOURS["server"]), INK)
_FLOOR = 0.02  # of a logarithmic axis: exact results stand there


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour for each rule: the mean grey, one other rule green, several in the series' colours.

    "trimmed, told 4" is the rule "trimmed" again: same colour, dashed.
    """
    families = list(dict.fromkeys(name.split(",")[0] for name in names if name != "mean"))
    colours = (COLOURS["defence"],) if len(families) == 1 else _RULES
    if len(families) > len(colours):
        raise ValueError(f"{len(families)} rules beside the mean, colours for {len(colours)}")
    chosen = {"mean": COLOURS["server"], **dict(zip(families, colours, strict=False))}
    return {
        name: {"color": chosen[name.split(",")[0]], "ls": (0, (4, 2)) if "," in name else "-"}
        for name in names
    }


@house_style
def one_liar(
    honest: Any, lie: Any, *, also: Mapping[str, Any] | None = None, caption: str = ""
) -> Figure:
    """Honest updates and one lie in a plane: where their mean was, and where it goes.

    ``honest [n, 2]``, ``lie [2]``. ``also[name]`` are further points ``[2]``, in green.
    """
    rows, wrong = to_array(honest).astype(float), to_array(lie).astype(float)
    before, after = rows.mean(axis=0), np.vstack([rows, wrong]).mean(axis=0)
    canvas, (whole, near) = new_figure(PAGE_WIDTH, 3.5, columns=2)
    for axes in (whole, near):
        axes.axhline(0, color=FAINT, lw=1.2)
        axes.axvline(0, color=FAINT, lw=1.2)
        axes.plot(*rows.T, "o", color=COLOURS["client"], ms=9 if axes is near else 6)
        axes.plot(*after, "s", color=COLOURS["server"], ms=10 if axes is near else 7)
    whole.plot(*wrong, "X", color=COLOURS["attacker"], ms=12, mec="white")
    arrow = {"arrowstyle": "-|>", "lw": 2.0, "color": COLOURS["server"], "shrinkA": 7, "shrinkB": 7}
    near.annotate("", after, before, arrowprops=arrow)
    near.plot(*before, "s", color="white", mec=COLOURS["server"], mew=2, ms=9)
    note = {"textcoords": "offset points", "va": "center"}
    whole.annotate("the liar", wrong, (12, 0), **note)
    whole.annotate(f"{len(rows)} honest", rows.min(axis=0), (-10, 6), ha="right", **note)
    near.annotate("the mean with the liar", after, (-8, -18), **note)
    near.annotate("the honest mean", before, (-11, 0), ha="right", **note)
    for name, point in (also or {}).items():
        near.plot(*to_array(point).astype(float), "D", mfc="none", mec=COLOURS["defence"], ms=15,
                  mew=2.5)  # fmt: skip
        near.annotate(name, to_array(point).astype(float), (-15, 0), ha="right", **note)
    inner = np.vstack([rows, after])
    low, high = inner.min(axis=0), inner.max(axis=0)
    near.set(xlim=(low[0] - 2.4, high[0] + 1.2), ylim=(low[1] - 1.2, high[1] + 0.9))
    whole.margins(0.16)
    for axes, title in ((whole, "all updates"), (near, "near the honest ones")):
        axes.set(title=title, xlabel="first value")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    whole.set_ylabel("second value")
    text = (
        f"Updates of two values. {len(rows)} honest clients have their mean at {_point(before)}. "
        f"One liar sends {_point(wrong)}, and the mean of all {len(rows) + 1} is {_point(after)}."
    )
    named = "; ".join(f"{name}: {_point(to_array(p))}" for name, p in (also or {}).items())
    alt = "A plane with updates: honest ones together, one far away, and the mean dragged off."
    return Figure(canvas, alt=alt, caption=join(text, f"{named}." if named else "", caption))


def _point(value: Any) -> str:
    return "(" + ", ".join(f"{x:.4g}" for x in value).replace("-", "−") + ")"


@house_style
def turning_point(
    scales: Sequence[float],
    accuracy: Mapping[str, Any],
    turns_at: float,
    *,
    chance: float,
    caption: str = "",
) -> Figure:
    """Accuracy after training against the scale of a sign flip, and where the mean must turn.

    ``accuracy[name]`` is ``[scales, seeds]`` in [0, 1].
    """
    canvas, axes = new_figure(PAGE_WIDTH, 3.7)
    x, looks = np.asarray(scales, float), _looks(list(accuracy))
    ends, said = [], []
    for name, table in accuracy.items():
        runs = 100 * to_array(table).astype(float)
        centre = runs.mean(axis=1)
        axes.fill_between(x, runs.min(axis=1), runs.max(axis=1), color=looks[name]["color"],
                          alpha=0.18, lw=0)  # fmt: skip
        axes.plot(x, centre, "o", ms=5, **looks[name])
        ends.append((float(x[-1]), float(centre[-1]), name, looks[name]["color"]))
        shown = ", ".join(f"{c:.0f} % at {s:g}" for s, c in zip(x, centre, strict=True))
        said.append(f"{name}: {shown}")
    axes.axvspan(turns_at, x[-1], color=COLOURS["attacker"], alpha=0.1, lw=0)
    axes.axvline(turns_at, color=COLOURS["attacker"], lw=1.6)
    axes.text(turns_at, 102, " the mean turns round", va="bottom")
    axes.axhline(100 * chance, color=INK, lw=1.2, ls=(0, (1, 2)))
    axes.set(xlabel="scale of the flip (0: no liar)", ylabel="test accuracy (%)")
    axes.set(xlim=(x[0], x[-1]), ylim=(0, 100))
    canvas.draw_without_rendering()
    label_ends(axes, ends)
    text = (
        f"Test accuracy against the scale of the flip. {'; '.join(said)}. The line at "
        f"{turns_at:g} is where the formula says that the mean turns round. Bands: least to most "
        "over the seeds. Dotted: guessing."
    )
    alt = f"Accuracy over the scale of the lie for {', '.join(accuracy)}; the mean's falls."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def lies_and_training(
    honest: Any,
    lies: Any,
    results: Mapping[str, float],
    curves: Mapping[str, Sequence[float]],
    *,
    chance: float,
    caption: str = "",
) -> Figure:
    """One round along the honest direction (above), and what comes of training (below).

    ``honest [n − f]`` and ``lies [f]``: the part of each row along the honest mean, which is 1.
    ``results[rule]`` likewise; ``curves[rule]`` are accuracies in [0, 1] after each round.
    """
    canvas, (line, course) = new_figure(PAGE_WIDTH, 5.0, rows=2, height_ratios=(1, 1.7))
    good, bad = to_array(honest).astype(float), to_array(lies).astype(float)
    looks = _looks(list(curves))
    paper = {"fc": "white", "ec": "none", "pad": 1, "alpha": 0.85}
    line.axvline(0, color=INK, lw=1.2)
    line.axvspan(-12, 0, color=COLOURS["attacker"], alpha=0.08, lw=0)
    line.plot(good, np.linspace(0.62, 0.88, len(good)), "o", color=COLOURS["client"], ms=6)
    line.plot(bad, np.linspace(0.62, 0.88, len(bad)), "X", color=COLOURS["attacker"], ms=8,
              mec="white")  # fmt: skip
    for place, (name, x) in enumerate(results.items()):
        height = 0.36 - 0.26 * place
        line.plot([x], [height], "D", color=looks[name]["color"], ms=8)
        shown = f"{name} {x:.2f}".replace("-", "−")
        line.annotate(shown, (x, height), (10, 0), va="center", bbox=paper,
                      textcoords="offset points")  # fmt: skip
    line.set(xlim=(-12, 3), ylim=(-0.1, 1), title="one round, along the honest mean (1)")
    line.set_yticks([])
    line.spines["left"].set_visible(False)
    ends, said = [], []
    for name, values in curves.items():
        y = 100 * np.concatenate([[np.nan], to_array(values).astype(float)])
        course.plot(np.arange(len(y)), y, **looks[name])
        ends.append((float(len(y) - 1), float(y[-1]), name, looks[name]["color"]))
        said.append(f"{name} {y[-1]:.0f} %")
    course.axhline(100 * chance, color=INK, lw=1.2, ls=(0, (1, 2)))
    course.set(xlabel="round", ylabel="accuracy (%)", ylim=(0, 100), xlim=(1, len(y) - 1))
    course.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    canvas.draw_without_rendering()
    label_ends(course, ends)
    where = "; ".join(f"{name} {x:.2f}".replace("-", "−") for name, x in results.items())
    text = (
        f"Above: {len(good)} honest rows (blue) and {len(bad)} lie{'s' * (len(bad) != 1)} "
        f"(vermilion), each as a multiple of the honest mean; the results: {where}. Left of 0 a "
        f"step undoes learning. Below, accuracy after {len(y) - 1} rounds: {', '.join(said)}. "
        "Dotted: guessing."
    )
    alt = "A number line with honest rows right of zero and lies left of it; curves of accuracy."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def pulls(
    distances: Sequence[float], moved: Mapping[str, Sequence[float]], *, caption: str = ""
) -> Figure:
    """How far one row drags each rule, against how far out it stands.

    ``moved[rule]`` gives a shift for each of ``distances``, both in spreads of the honest rows.
    """
    canvas, axes = new_figure(PAGE_WIDTH, 3.7)
    x, looks = np.asarray(distances, float), _looks(list(moved))
    ends, said = [], []
    for name, shift in moved.items():
        y = np.asarray(shift, float)
        axes.plot(x, y, **looks[name])
        ends.append((float(x[-1]), float(y[-1]), name, looks[name]["color"]))
        said.append(f"{name} {y[-1]:.2f}".replace("-", "−"))
    axes.set(xlabel="where the liar stands (spreads from the middle)", ylabel="shift (spreads)")
    axes.set(xlim=(x[0], x[-1]), ylim=(None, None))
    canvas.draw_without_rendering()
    label_ends(axes, ends)
    text = (
        f"One client of many moves out; how far each rule follows. At {x[-1]:g} spreads: "
        f"{', '.join(said)}."
    )
    alt = "Shift of each rule over the place of one liar: the mean's grows, the others' do not."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def breakdown(
    counts: Sequence[int],
    errors: Mapping[str, Sequence[float]],
    *,
    num_clients: int,
    caption: str = "",
) -> Figure:
    """Distance to the honest mean against the number of liars, log y; NaN where a rule refuses.

    ``errors[rule]`` in spreads of the honest rows, one for each of ``counts``. A rule's line ends
    in a ring where it refuses from the next count on.
    """
    canvas, axes = new_figure(PAGE_WIDTH, 4.6)
    x, looks = np.asarray(counts, float), _looks(list(errors))
    ends, said = [], []
    for name, table in errors.items():
        y = np.maximum(np.asarray(table, float), _FLOOR)
        there = np.isfinite(y)
        axes.plot(x[there], y[there], marker="o", ms=4.5, **looks[name])
        last = int(np.flatnonzero(there)[-1])
        if last < len(x) - 1:
            axes.plot(x[last], y[last], "o", ms=11, mfc="none", mec=looks[name]["color"], mew=2)
            said.append(f"{name} refuses from {counts[last + 1]}")
        far = [c for c, value in zip(counts, y, strict=True) if value > 10]
        if far:
            said.append(f"{name} is carried off from {far[0]}")
        ends.append((float(x[last]), float(y[last]), name, looks[name]["color"]))
    axes.axvline(num_clients / 2, color=COLOURS["attacker"], lw=1.6)
    axes.set(
        yscale="log",
        xlim=(x[0], x[-1]),
        ylim=(_FLOOR, 1e4),
        xlabel=f"liars among {num_clients} clients",
    )
    axes.set(ylabel="off (honest spreads)")
    axes.xaxis.set_major_locator(MaxNLocator(11, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    canvas.draw_without_rendering()
    label_ends(axes, ends)
    text = (
        f"How far from the honest mean each rule lands, by the number of liars among "
        f"{num_clients} clients, who all send the same far row. {'; '.join(said)}. Ring: the last "
        "number that a rule accepts. Line: half of all. Exact results stand at the lower edge."
    )
    alt = "Errors over the number of liars: the mean's is large from one on, the others' jump late."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def robust_accuracy(
    accuracy: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    attacked: Collection[str],
    chance: float,
    caption: str = "",
) -> Figure:
    """Accuracy of each rule under several conditions, side by side, one dot a seed.

    ``accuracy[condition][rule]``, values in [0, 1]. Conditions in ``attacked`` have liars.
    """
    canvas, panels = new_figure(
        PAGE_WIDTH, 0.9 + 0.36 * len(next(iter(accuracy.values()))), columns=len(accuracy),
        sharey=True,
    )  # fmt: skip
    said = []
    for axes, (condition, table) in zip(panels, accuracy.items(), strict=True):
        means = _dots(axes, table, COLOURS["attacker" if condition in attacked else "client"])
        axes.axvline(100 * chance, color=INK, lw=1.2, ls=(0, (1, 2)))
        axes.set(xlim=(0, 104), title=condition, xlabel="accuracy (%)")
        said.append(f"{condition}: {', '.join(f'{n} {m:.0f}' for n, m in means.items())}")
    panels[0].invert_yaxis()
    text = (
        f"Test accuracy in %, mean over seeds. {'; '.join(said)}. One dot a seed; dotted: guessing."
    )
    alt = f"Dots of accuracy for {len(table)} rules: {'; '.join(accuracy)}."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _dots(axes: Axes, table: Mapping[str, Sequence[float]], colour: str) -> dict[str, float]:
    """One line of dots for each rule, a stroke at the mean; returns the means in %."""
    means = {}
    for y, (name, values) in enumerate(table.items()):
        runs = 100 * np.asarray(values, float)
        axes.plot([0, runs.mean()], [y, y], color=FAINT, lw=1.4, zorder=0)
        axes.plot(runs, [y] * len(runs), "o", color=colour, ms=7, alpha=0.75, mec="white")
        means[name] = float(runs.mean())
    axes.set_yticks(range(len(table)), list(table))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return means
