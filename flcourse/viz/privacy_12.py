"""Figures of private training: accuracy against clients, and against what an attacker sees.

Chapter 12.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from flcourse.viz.base import (
    COLOURS,
    INK,
    PAGE_WIDTH,
    SERIES,
    Figure,
    house_style,
    join,
    label_starts,
    new_figure,
    to_array,
)


@house_style
def cost_by_clients(
    lost: Mapping[str, Mapping[int, Any]], *, trained: int, caption: str = ""
) -> Figure:
    """Points of accuracy lost to noise against the number of clients, one line a privacy level.

    ``lost[name][N]`` in points, one value a seed. Above ``trained`` clients points are hollow: the
    noise is scaled exactly, the training is that of ``trained`` clients.
    """
    canvas, axes = new_figure(PAGE_WIDTH, 3.9)
    axes.set_xscale("log")
    starts, said = [], []
    for (name, table), colour in zip(lost.items(), SERIES, strict=False):
        x = np.array(list(table))
        runs = [to_array(values).astype(float) for values in table.values()]
        middle = np.array([values.mean() for values in runs])
        axes.plot(x[x <= trained], middle[x <= trained], color=colour)
        axes.plot(x[x >= trained], middle[x >= trained], color=colour, ls=(0, (3, 2)), lw=1.8)
        for place, values in zip(x, runs, strict=True):
            face = colour if place <= trained else "white"
            axes.plot([place] * len(values), values, "o", mec=colour, mfc=face, ms=6)
        starts.append((float(x[0]), float(middle[0]), name, colour))
        points = ", ".join(f"{m:.1f} at {n:,}" for n, m in zip(x, middle, strict=True))
        said.append(f"{name}: {points}")
    axes.set(xlabel="clients", ylabel="accuracy lost (points)", xlim=(1.8, 1.5 * x[-1]))
    axes.set_ylim(-3, None)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([10**k for k in range(1, 7) if 10**k <= x[-1]])
    canvas.draw_without_rendering()
    label_starts(axes, starts)
    text = (
        f"Points of test accuracy lost to noise, by number of clients. {'; '.join(said)}. One dot "
        f"a seed; hollow: the noise of that many clients, the updates of {trained:,}."
    )
    alt = f"The accuracy lost falls to nothing with the number of clients for {', '.join(lost)}."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def price_of_noise(
    training: Mapping[str, Mapping[float, Any]],
    pictures: Mapping[str, Mapping[float, Any]],
    floor: float,
    labels: Mapping[float, Any],
    epsilons: Mapping[str, Mapping[float, float]],
    *,
    chance: float,
    caption: str = "",
) -> Figure:
    """Accuracy, picture and label over one axis, the noise multiplier, with what ε it means.

    ``training[where][z]`` accuracies, ``pictures[attacker][z]`` PSNRs in dB, ``labels[z]`` shares
    of labels read, all in [0, 1] but the PSNRs, one value a run. ``floor`` is a flat picture's
    PSNR, ``chance`` the accuracy of guessing, ``epsilons[what][z]`` are written below the axis.
    """
    canvas, (top, middle, bottom) = new_figure(
        PAGE_WIDTH, 7.4, rows=3, sharex=True, height_ratios=(1.15, 1.15, 0.8)
    )
    defence, attacker, grey = (COLOURS[n] for n in ("defence", "attacker", "server"))
    for axes, z in ((a, list(labels)) for a in (top, middle, bottom)):
        axes.set_xscale("log")
        axes.set_xlim(min(z), max(max(t) for t in training.values()))
    _lines(top, training, {"server": defence, "local": COLOURS["client"]}, 100)
    top.axhline(100 * chance, color=INK, lw=1.2, ls=(0, (1, 2)))
    top.set(ylabel="accuracy (%)", ylim=(0, 100))
    _lines(middle, pictures, dict(zip(pictures, (attacker, COLOURS["warning"]), strict=False)), 1)
    middle.axhline(floor, color=grey, lw=1.6, ls=(0, (4, 3)))
    right = {"transform": middle.get_yaxis_transform(), "va": "bottom", "ha": "right"}
    middle.text(1, floor, "floor", **right)
    middle.set(ylabel="PSNR (dB)", ylim=(0, None))
    _lines(bottom, {"": labels}, {"": attacker}, 100)
    bottom.set(ylabel="labels read (%)", ylim=(-4, 104))
    for axes, title in (
        (top, "what training keeps"),
        (middle, "the picture"),
        (bottom, "the label"),
    ):
        axes.set_title(title)
    _epsilon_ticks(bottom, epsilons)
    said = [
        f"{what}: " + ", ".join(f"{np.mean(to_array(v)):.{d}{k}} at {z:g}" for z, v in t.items())
        for table, d, k in ((training, 0, "%"), (pictures, 1, "f"), ({"labels": labels}, 0, "%"))
        for what, t in table.items()
    ]
    text = (
        "One noise multiplier z, seen from both sides. Below the axis z, and the ε of "
        f"{' and of '.join(epsilons)}. Means: {'; '.join(said)}; flat picture {floor:.1f} dB. "
        "Bands: least to most. Dotted: guessing."
    )
    alt = "Three charts over the noise multiplier: accuracy falls late, picture and label earlier."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _lines(
    axes: Axes, series: Mapping[str, Mapping[float, Any]], colours: Mapping[str, str], scale: float
) -> None:
    """Means as lines, least to most as bands, names at places where the lines are apart."""
    first, *others = series
    places: dict[str, tuple[int, tuple[float, float], str]] = {
        "server": (-1, (0, 7), "right"),
        "local": (-2, (-8, -3), "right"),
    }
    if first not in places and others:
        places |= {first: (1, (8, 6), "left"), others[0]: (1, (4, -9), "left")}
    shown = {"server": "the server adds noise", "local": "each client adds noise"}
    for name, table in series.items():
        x = np.array(list(table))
        runs = [scale * to_array(values).astype(float) for values in table.values()]
        low, high = (np.array([f(v) for v in runs]) for f in (np.min, np.max))
        centre = np.array([v.mean() for v in runs])
        colour = colours[name]
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        axes.plot(x, centre, "o-", color=colour, ms=5)
        if name in places:
            index, offset, side = places[name]
            axes.annotate(
                shown.get(name, name), (x[index], centre[index]), xytext=offset, ha=side,
                textcoords="offset points", va="bottom" if offset[1] > 0 else "top",
            )  # fmt: skip


def _epsilon_ticks(axes: Axes, epsilons: Mapping[str, Mapping[float, float]]) -> None:
    """Under each tick its z and the ε that it means, one row a reading."""
    ticks = sorted(next(iter(epsilons.values())))
    rows = [
        [f"{z:g}", *(_short(table[z]) if z in table else "" for table in epsilons.values())]
        for z in ticks
    ]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(["\n".join(row) for row in rows])
    lines = ["z", *(f"ε of {name}" for name in epsilons)]
    axes.set_xlabel("rows from the top: " + ", ".join(lines))


def _short(epsilon: float) -> str:
    if epsilon < 1000:
        return f"{epsilon:.2g}" if epsilon < 10 else f"{epsilon:.0f}"
    power = int(np.log10(epsilon))
    return rf"${epsilon / 10**power:.0f} \cdot 10^{power}$"


@house_style
def accuracy_bars(
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    chance: float,
    bare: Collection[str] = ("FedAvg", "clipped only"),
    caption: str = "",
) -> Figure:
    """Accuracies as bars, ``groups[heading][name]`` with one value in [0, 1] a seed.

    Names in ``bare`` promise nothing and are grey, the others green.
    """
    rows = sum(len(group) + 1 for group in groups.values())
    canvas, axes = new_figure(PAGE_WIDTH, 0.9 + 0.34 * rows)
    place, ticks, said = 0.0, [], []
    for heading, group in groups.items():
        paper = {"fc": "white", "ec": "none", "pad": 1.5}
        axes.text(1, place, heading, weight="bold", va="center", bbox=paper)
        for name, values in group.items():
            place += 1
            mean = float(np.mean(values))
            colour = COLOURS["server" if name in bare else "defence"]
            axes.barh(place, 100 * mean, height=0.68, color=colour)
            axes.plot(100 * np.array(values), [place] * len(values), "|", color=INK, ms=9)
            axes.text(100 * max(values) + 1, place, f"{100 * mean:.0f} %", va="center")
            ticks.append((place, name))
            said.append(f"{heading}, {name}: {100 * mean:.1f} %")
        place += 1
    axes.axvline(100 * chance, color=INK, lw=1.2, ls=(0, (1, 2)))
    axes.set_yticks([p for p, _ in ticks], [name for _, name in ticks])
    axes.set(xlabel="accuracy (%)", xlim=(0, 100), ylim=(place - 0.3, -0.7))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    text = f"{'; '.join(said)}. Dotted: guessing. Strokes: single seeds."
    return Figure(canvas, alt="Bars of test accuracy, without and with privacy.",
                  caption=join(text, caption))  # fmt: skip
