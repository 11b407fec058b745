"""Figures about learning: curves, bytes against accuracy, partitions, client drift. Chapter 01."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter
from scipy.interpolate import RectBivariateSpline

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
    label_starts,
    new_figure,
    series_colours,
    to_array,
)


@house_style
def learning_curves(
    runs: Mapping[str, Sequence[Any]],
    *,
    colours: Mapping[str, str] | None = None,
    reference: tuple[str, float] | None = None,
    caption: str = "",
) -> Figure:
    """Test accuracy against the round: a line for the mean over seeds, a band from least to most.

    ``runs[label]`` has one entry a seed: a ``History``, or accuracies in [0, 1] by round.
    ``reference`` is a named level, such as ``("all data in one place", 0.86)``.
    Raises ``ValueError`` if the seeds of one label have different numbers of rounds.
    """
    tables = {label: _accuracies(label, seeds) for label, seeds in runs.items()}
    chosen = colours or series_colours(tables)
    canvas, axes = new_figure(PAGE_WIDTH, 3.9)
    last = max(table.shape[1] for table in tables.values())
    ends = []
    for label, table in tables.items():
        rounds = np.arange(1, table.shape[1] + 1)
        _band(axes, rounds, table, chosen[label])
        ends.append((rounds[-1], table[:, -1].mean() * 100, label, chosen[label]))
    if reference is not None:
        name, level = reference
        axes.axhline(level * 100, color=COLOURS["server"], lw=1.6, ls=(0, (4, 3)))
        ends.append((last, level * 100, name, COLOURS["server"]))
    axes.set(xlabel="round", ylabel="test accuracy (%)", xlim=(1, max(last, 2)))
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    canvas.draw_without_rendering()
    label_ends(axes, ends)
    final = "; ".join(f"{label}: {_range(table[:, -1])}" for label, table in tables.items())
    level_text = f"; {reference[0]}: {100 * reference[1]:.1f} %" if reference else ""
    seeds = len(next(iter(tables.values())))
    text = f"Test accuracy after {last} rounds — {final}{level_text}. {_spread_note(seeds)}"
    alt = f"Line chart of test accuracy over {last} rounds for {', '.join(tables)}."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def accuracy_against_megabytes(
    panels: Mapping[str, Mapping[str, tuple[Any, Any]]],
    *,
    target: float | None = None,
    caption: str = "",
) -> Figure:
    """Accuracy against megabytes sent (logarithmic), one panel a partition, one line a setting.

    ``panels["IID"]["E = 5"] = (megabytes [r], accuracies [r] or [seeds, r] in [0, 1])``.
    ``target`` draws a level; the caption says what each setting sends until its mean reaches it.
    """
    canvas, grid = new_figure(PAGE_WIDTH, 4.0, columns=len(panels), sharey=True, squeeze=False)
    notes, named = [], []
    for axes, (title, curves) in zip(grid[0], panels.items(), strict=True):
        starts, reached = [], []
        chosen = series_colours(curves)
        for label, (megabytes, accuracy) in curves.items():
            colour = chosen[label]
            sent, table = to_array(megabytes), np.atleast_2d(to_array(accuracy))
            _band(axes, sent, table, colour)
            starts.append((sent[0], table[:, 0].mean() * 100, label, colour))
            reached.append(f"{label}: {_first_reached(sent, table.mean(axis=0), target)}")
        axes.set_xscale("log")
        axes.set(title=title, xlabel="megabytes sent, up and down", ylim=(0, 100))
        # Room at the left for the names; where the lines end, they are too close to be named.
        axes.set_xlim(left=min(start[0] for start in starts) / 4.5)
        axes.xaxis.set_major_locator(
            FixedLocator([m * 10.0**n for n in range(-3, 6) for m in (1, 3)])
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if target is not None:
            axes.axhline(100 * target, color=COLOURS["server"], lw=1.2, ls=(0, (4, 3)))
        notes.append(f"{title} — {', '.join(reached)}")
        named.append((axes, starts))
    canvas.draw_without_rendering()
    for axes, starts in named:
        label_starts(axes, starts)
    grid[0][0].set_ylabel("test accuracy (%)")
    alt = f"Accuracy against megabytes sent, in panels for {' and '.join(panels)}."
    text = ""
    if target is not None:
        text = f"Megabytes sent until the mean reaches {100 * target:.0f} %: {'; '.join(notes)}."
    seeds = max(len(np.atleast_2d(to_array(a))) for c in panels.values() for _, a in c.values())
    return Figure(canvas, alt=alt, caption=join(text, _spread_note(seeds), caption))


@house_style
def partition_bars(
    partitions: Mapping[str, Sequence[Any]], classes: Sequence[str], *, caption: str = ""
) -> Figure:
    """How many samples of each class every client holds: dots whose area is the count.

    ``partitions["Dirichlet(0.1)"]`` is a list of clients (anything with ``labels``), or of label
    tensors. Classes are columns, clients are rows; the number at the right is the client's total.
    """
    tables = {name: _label_counts(clients, len(classes)) for name, clients in partitions.items()}
    num_clients = max(len(table) for table in tables.values())
    height = 1.35 + 0.3 * num_clients
    canvas, grid = new_figure(PAGE_WIDTH, height, columns=len(tables), squeeze=False, sharey=True)
    biggest = max(table.max() for table in tables.values())
    room = 0.4 + 0.65 * len(tables)  # for the totals, in widths of a class
    for axes, (name, table) in zip(grid[0], tables.items(), strict=True):
        _count_dots(axes, table, biggest, 480 / len(tables), room)
        axes.set(title=name, xlabel="class", yticks=range(num_clients))
        axes.set_xticks(range(len(classes)), classes)
        axes.set(xlim=(-0.7, len(classes) - 0.3 + room), ylim=(num_clients - 0.4, -0.6))
    grid[0][0].set_ylabel("client")
    sizes = "; ".join(
        f"{name}: {_whole_range(table.sum(axis=1))} samples a client, "
        f"{(table > 0).sum(axis=1).mean():.1f} of {len(classes)} classes on average"
        for name, table in tables.items()
    )
    alt = f"Dots for the number of samples by client and class, for {', '.join(tables)}."
    text = f"The area of a dot is the number of samples of a class; totals at the right. {sizes}."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def client_drift(
    across: Any,
    upward: Any,
    loss_a: Any,
    loss_b: Any,
    points: Mapping[str, tuple[float, float]],
    *,
    names: tuple[str, str] = ("client A", "client B"),
    caption: str = "",
) -> Figure:
    """Two clients' losses on the plane through the global model and the two local models.

    ``across`` ``[m]`` and ``upward`` ``[n]`` are the plane's coordinates (distances of models),
    ``loss_a`` and ``loss_b`` ``[n, m]`` the losses there. ``points`` places "global", "A", "B" and
    "average". Each valley is shaded by its own client's loss; the alt text says where they lie and
    whether the average lies in one.
    """
    x, y = to_array(across), to_array(upward)
    # The page's width, as every figure: a narrow picture would be blown up, its letters too.
    canvas, axes = new_figure(PAGE_WIDTH, min(PAGE_WIDTH * float(np.ptp(y) / np.ptp(x)), 4.4))
    losses = [to_array(loss_a), to_array(loss_b)]
    fine_x, fine_y = (np.linspace(axis[0], axis[-1], 200) for axis in (x, y))
    valleys, holds_average = [], []
    for coarse, colour in zip(losses, (SERIES[0], SERIES[1]), strict=True):
        # A spline between the grid's points: a coarse grid costs less and its contours stay smooth.
        loss = RectBivariateSpline(y, x, coarse)(fine_y, fine_x)
        levels = np.quantile(loss, (0.04, 0.12, 0.24, 0.4))
        for level in levels:  # nested fills add up: the deeper, the darker
            axes.contourf(
                fine_x, fine_y, loss, [loss.min() - 1e-9, level], colors=[colour], alpha=0.16
            )
        axes.contour(fine_x, fine_y, loss, levels, colors=[colour], linewidths=1.1)
        lowest = np.unravel_index(loss.argmin(), loss.shape)
        valleys.append((float(fine_x[lowest[1]]), float(fine_y[lowest[0]])))
        holds_average.append(_between(fine_x, fine_y, loss, points["average"]) <= levels[-1])
    start = points["global"]
    for end in ("A", "B"):
        axes.annotate("", points[end], xytext=start, arrowprops=_ARROW)
    axes.plot(*zip(points["A"], points["B"], strict=True), color=INK, lw=1, ls=(0, (3, 3)))
    marks = {"global": ("o", "white"), "A": ("o", SERIES[0]), "B": ("o", SERIES[1]),
             "average": ("D", COLOURS["server"])}  # fmt: skip
    texts = {"global": "global model", "A": names[0], "B": names[1], "average": "their average"}
    middle = np.mean([point[1] for point in points.values()])
    for key, (shape, fill) in marks.items():
        axes.plot(*points[key], shape, mfc=fill, mec=INK, ms=9, mew=1.4, zorder=6)
        _beside(axes, points[key], texts[key], above=bool(points[key][1] >= middle))
    axes.set(xlabel="distance in weight space", ylabel="distance in weight space", aspect="equal")
    axes.grid(False)
    axes.locator_params(nbins=5)
    at = {key: [_between(x, y, loss, place) for loss in losses] for key, place in points.items()}
    own = [
        f"{name}: {at['global'][k]:.1f} at the global model, {at[key][k]:.1f} at its own, "
        f"{at['average'][k]:.1f} at the average"
        for k, (key, name) in enumerate(zip("AB", names, strict=True))
    ]
    text = f"Shaded: where each client's own loss is low. Loss of {'; of '.join(own)}."
    ways = [_way(start, valley, float(np.ptp(x))) for valley in valleys]
    held = [name for name, holds in zip(names, holds_average, strict=True) if holds]
    alt = (
        f"Contours of two losses around the global model: the valley of {names[0]} lies "
        f"{ways[0]} it, that of {names[1]} {ways[1]} it. The average of the two local models lies "
        f"{'in the valley of ' + ' and of '.join(held) if held else 'in neither valley'}."
    )
    return Figure(canvas, alt=alt, caption=join(text, caption), colours=96)


@house_style
def drift_line(
    places: Any,
    loss_a: Any,
    loss_b: Any,
    *,
    average: float = 0.5,
    names: tuple[str, str] = ("client A", "client B"),
    caption: str = "",
) -> Figure:
    """Both clients' losses along the line from A's model (place 0) to B's (place 1).

    ``places`` ``[m]``; ``loss_a``, ``loss_b`` ``[m]``. The mean of the two is what FedAvg would
    like to be small at ``average``.
    """
    x, losses = to_array(places), [to_array(loss_a), to_array(loss_b)]
    canvas, axes = new_figure(PAGE_WIDTH, 3.7)
    both = (losses[0] + losses[1]) / 2
    lines = [*losses, both]
    labels = [f"loss of {names[0]}", f"loss of {names[1]}", "mean of both"]
    colours = [SERIES[0], SERIES[1], COLOURS["server"]]
    for line, colour, dashes in zip(lines, colours, ("-", "-", (0, (4, 2))), strict=True):
        axes.plot(x, line, color=colour, ls=dashes)
    top = max(line.max() for line in lines) * 1.08
    axes.set(xlim=(x[0], x[-1]), ylim=(0, top), ylabel="training loss (nats)")
    axes.set_xlabel("place on the line between the two local models")
    axes.axvline(average, color=INK, lw=1, ls=(0, (2, 3)))
    axes.set_xticks([0, average, 1], [f"{names[0]}'s\nmodel", "average", f"{names[1]}'s\nmodel"])
    axes.plot([average] * 3, [np.interp(average, x, line) for line in lines], "o", color=INK, ms=5)
    canvas.draw_without_rendering()
    named = zip(lines, labels, colours, strict=True)
    label_ends(axes, [(x[-1], line[-1], label, colour) for line, label, colour in named])
    own = [float(np.interp(place, x, loss)) for place, loss in zip((0, 1), losses, strict=True)]
    there = [float(np.interp(average, x, loss)) for loss in losses]
    text = (
        f"Each client's loss is low at its own model ({own[0]:.2f} and {own[1]:.2f}) and higher at "
        f"the average ({there[0]:.2f} and {there[1]:.2f})."
    )
    alt = "Two loss curves between two local models, with their average marked."
    return Figure(canvas, alt=alt, caption=join(text, caption))


_ARROW = {"arrowstyle": "-|>", "color": INK, "lw": 1.6, "shrinkA": 6, "shrinkB": 6}


def _accuracies(label: str, seeds: Sequence[Any]) -> np.ndarray:
    """``[seeds, rounds]`` from histories or from accuracies."""
    rows = [
        np.array([r.accuracy for r in seed.rounds]) if hasattr(seed, "rounds") else to_array(seed)
        for seed in seeds
    ]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"the seeds of {label!r} have {[len(row) for row in rows]} rounds")
    return np.stack(rows)


def _band(axes: Axes, x: np.ndarray, table: np.ndarray, colour: str) -> None:
    """The mean over seeds (rows, in [0, 1]) as a line, least to most as a band, in per cent."""
    if len(table) > 1:
        low, high = 100 * table.min(axis=0), 100 * table.max(axis=0)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    axes.plot(x, 100 * table.mean(axis=0), color=colour)


def _range(values: np.ndarray) -> str:
    low, high = 100 * values.min(), 100 * values.max()
    return f"{low:.1f} %" if len(values) == 1 else f"{low:.1f}–{high:.1f} %"


def _whole_range(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low}–{high}"


def _spread_note(seeds: int) -> str:
    return f"Lines: mean of {seeds} seeds; bands: least to most." if seeds > 1 else "One seed."


def _first_reached(megabytes: np.ndarray, accuracy: np.ndarray, target: float | None) -> str:
    hits = np.flatnonzero(accuracy >= (target or 0))
    return f"{megabytes[hits[0]]:.3g} MB" if len(hits) else "not reached"


def _label_counts(clients: Sequence[Any], num_classes: int) -> np.ndarray:
    labels = [to_array(getattr(client, "labels", client)) for client in clients]
    return np.stack([np.bincount(held, minlength=num_classes) for held in labels])


def _count_dots(axes: Axes, table: np.ndarray, biggest: int, area: float, room: float) -> None:
    rows, columns = np.nonzero(table)
    sizes = area * table[rows, columns] / biggest
    axes.scatter(columns, rows, s=sizes, color=COLOURS["private"], lw=0)
    for row, total in enumerate(table.sum(axis=1)):
        axes.text(table.shape[1] - 0.4 + room, row, f"{total}", va="center", ha="right", size=11.5)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.hlines(range(len(table)), -0.5, table.shape[1] - 0.5, color=FAINT, lw=0.8, zorder=0)
    axes.spines[["left", "bottom"]].set_visible(False)


def _beside(axes: Axes, point: tuple[float, float], text: str, *, above: bool) -> None:
    offset = (0, 11) if above else (0, -12)
    axes.annotate(
        text, point, xytext=offset, textcoords="offset points", ha="center", zorder=7,
        va="bottom" if above else "top",
        bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.85},
    )  # fmt: skip


def _between(x: np.ndarray, y: np.ndarray, loss: np.ndarray, point: tuple[float, float]) -> float:
    return float(RectBivariateSpline(y, x, loss)(point[1], point[0])[0, 0])


def _way(start: tuple[float, float], end: tuple[float, float], width: float) -> str:
    """In which direction ``end`` lies, in words; less than 5 % of ``width`` does not count."""
    right, up = end[0] - start[0], end[1] - start[1]
    parts = [("above", "below")[up < 0]] if abs(up) > 0.05 * width else []
    parts += [("right of", "left of")[right < 0]] if abs(right) > 0.05 * width else []
    return " and ".join(parts) or "at"
