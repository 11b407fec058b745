"""Figures of sums under encryption: by hand, in slots, what they cost, and who adds the noise.

Chapter 14.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from flcourse.viz.base import (
    COLOURS,
    FAINT,
    INK,
    PAGE_WIDTH,
    SERIES,
    Figure,
    blank,
    house_style,
    join,
    label_ends,
    new_figure,
    to_array,
)


@house_style
def paillier_sum(
    messages: Sequence[int], randoms: Sequence[int], p: int, q: int, *, caption: str = ""
) -> Figure:
    """Each client's number, its Paillier ciphertext, their product, and what that decrypts to.

    ``randoms`` are the clients' ``r``; ``p``, ``q`` two primes small enough for paper.
    """
    n = p * q
    square = n * n
    sent = [
        (1 + n * m) * pow(r, n, square) % square for m, r in zip(messages, randoms, strict=True)
    ]
    product = math.prod(sent) % square
    secret = math.lcm(p - 1, q - 1)
    opened = (pow(product, secret, square) - 1) // n * pow(secret, -1, n) % n
    canvas, sheet = new_figure(PAGE_WIDTH, 3.5)
    blank(sheet)
    sheet.set(xlim=(0, 10), ylim=(0, 5.1))
    heads = ((1.15, "clients"), (4.85, "server, without the key"), (8.85, "with the key"))
    for x, name in heads:
        sheet.text(x, 4.8, name, ha="center", va="center", weight="bold")
    places = np.linspace(3.8, 0.6, len(sent)) if len(sent) > 1 else [2.2]
    for y, m, r, c in zip(places, messages, randoms, sent, strict=True):
        _box(sheet, 0.75, y, str(m), COLOURS["private"])
        _arrow(sheet, (1.25, y), (3.05, y), f"r = {r}")
        _box(sheet, 3.6, y, str(c), COLOURS["server"], wide=0.55)
        _arrow(sheet, (4.17, y), (5.2, 2.2))
    _box(sheet, 5.95, 2.2, str(product), COLOURS["server"], wide=0.7)
    sheet.text(5.95, 1.35, f"product\nmod {n}²", ha="center", va="center", size=11.5)
    _arrow(sheet, (6.7, 2.2), (8.3, 2.2), "decrypt")
    _box(sheet, 8.85, 2.2, str(opened), COLOURS["private"], wide=0.5)
    plain = " + ".join(map(str, messages))
    if sum(messages) >= n:
        plain = f"{plain} = {sum(messages)} modulo {n}"
    text = (
        f"Paillier's cipher with n = {p} · {q} = {n}. The server multiplies {len(sent)} "
        f"ciphertexts modulo {square:,}. Whoever has the key decrypts {opened} = {plain}."
    )
    alt = "Numbers become ciphertexts, the server multiplies them, and the product is opened."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _box(sheet: Axes, x: float, y: float, text: str, colour: str, wide: float = 0.42) -> None:
    sheet.add_patch(
        FancyBboxPatch(
            (x - wide, y - 0.36), 2 * wide, 0.72, boxstyle="round,pad=0.02,rounding_size=0.12",
            fc=colour, ec="none",
        )
    )  # fmt: skip
    sheet.text(x, y, text, ha="center", va="center", color="white", weight="bold", size=13)


def _arrow(
    sheet: Axes, start: tuple[float, float], end: tuple[float, float], text: str = ""
) -> None:
    sheet.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=INK))
    if text:
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.28
        sheet.text(*middle, text, ha="center", va="center", size=11.5)


@house_style
def slots(rows: Any, width: int, level: int, *, caption: str = "") -> Figure:
    """Each client's numbers in slots of ``width`` bits, and their sum as it is read back.

    ``rows`` ``[n, d]`` whole numbers of at most ``level``. A slot whose sum does not fit carries
    into its left neighbour: what comes out wrong is vermilion.
    """
    table = to_array(rows).astype(int)
    count, size = table.shape
    plain = [sum((int(v) + level) << (width * i) for i, v in enumerate(row)) for row in table]
    total = sum(plain)
    found = [(total >> (width * i)) % 2**width - count * level for i in range(size)]
    true = table.sum(axis=0).tolist()
    over = total >> (width * size)
    canvas, sheet = new_figure(PAGE_WIDTH, 0.75 + 0.47 * (count + 1))
    blank(sheet)
    sheet.set(xlim=(-0.75, size + 0.02), ylim=(-0.45, count + 1.75))
    for place in range(size):
        sheet.text(size - place - 0.5, count + 1.35, f"slot {place + 1}", ha="center", va="center")
    for line, row in enumerate(table):
        y = count - line
        sheet.text(-0.1, y + 0.32, f"client {line + 1}", ha="right", va="center")
        for place, value in enumerate(row):
            bits = f"{int(value) + level:b}".zfill(width)
            _slot(sheet, size - place - 1, y, bits, int(value), COLOURS["private"])
    sheet.text(-0.1, 0.02, "sum", ha="right", va="center", weight="bold")
    wrong = [f != t for f, t in zip(found, true, strict=True)]
    for place, (value, bad) in enumerate(zip(found, wrong, strict=True)):
        bits = f"{(total >> (width * place)) % 2**width:b}".zfill(width)
        colour = COLOURS["attacker"] if bad else COLOURS["defence"]
        _slot(sheet, size - place - 1, -0.3, bits, value, colour)
    said = (
        "Every sum is right."
        if not any(wrong)
        else f"Read from slot 1 on: {spelt(found)}; true: {spelt(true)}."
    )
    lost = " A carry runs out on the left." if over else ""
    text = (
        f"Numbers up to ±{level} of {count} clients, shifted by {level}, in slots of {width} bits; "
        f"slot 1 stands on the right. {said}{lost}"
    )
    alt = f"{count} rows of {size} slots with their bits, and the row of sums below."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def spelt(numbers: Sequence[int]) -> str:
    """Whole numbers in a row, with a minus that is one."""
    return ", ".join(map(str, numbers)).replace("-", "−")


def _slot(sheet: Axes, x: float, y: float, bits: str, value: int, colour: str) -> None:
    sheet.add_patch(Rectangle((x + 0.02, y), 0.96, 0.64, fc=colour, alpha=0.16, ec=colour, lw=1.2))
    sheet.text(x + 0.08, y + 0.31, bits, va="center", family="DejaVu Sans Mono", size=11.5)
    sheet.text(
        x + 0.92,
        y + 0.31,
        f"{value:d}".replace("-", "−"),
        ha="right",
        va="center",
        weight="bold",
        size=12,
    )


@house_style
def price_of_precision(
    precisions: Sequence[int],
    size: Mapping[str, Sequence[float]],
    error: Sequence[float],
    now: int,
    *,
    caption: str = "",
) -> Figure:
    """Bytes a value of each way to send it, and the error of the sum, against bits a value.

    ``size[name][i]`` and ``error[i]`` (relative length) belong to ``precisions[i]``; ``now`` is the
    place of the one that is marked.
    """
    canvas, (left, right) = new_figure(PAGE_WIDTH, 3.6, columns=2, width_ratios=(1, 1))
    bits = precisions[now]
    colours = dict(zip(size, (COLOURS["defence"], *SERIES), strict=False))
    for place, (name, values) in enumerate(size.items()):
        left.plot(precisions, values, color=colours[name])
        left.plot([bits], [values[now]], "o", color=colours[name], ms=7, mec="white")
        _name_line(left, f"{name} {values[now]:.3g}", precisions, values, place, len(size))
    left.set(
        yscale="log", ylim=(0.6, 70), xlabel="bits of a client's value",
        title="bytes a value", xticks=precisions[::2],
    )  # fmt: skip
    left.set_yticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    left.minorticks_off()
    right.plot(precisions, error, color=INK)
    right.plot([bits], [error[now]], "o", color=INK, ms=7, mec="white")
    right.set(
        yscale="log", xlabel="bits of a client's value", title="error of the sum, relative",
        xticks=precisions[::2],
    )  # fmt: skip
    right.minorticks_off()
    late = now > len(precisions) // 2  # the name stands where the falling line is not
    right.annotate(
        f"{error[now]:.1g}", (bits, error[now]), xytext=(-8, -8) if late else (8, 6),
        textcoords="offset points", ha="right" if late else "left", va="top" if late else "bottom",
    )  # fmt: skip
    right.set_ylim(min(error) / 8, max(error) * 8)
    said = ", ".join(f"{name} {values[now]:.3g}" for name, values in size.items())
    text = (
        f"At {bits} bits a value: bytes a value {said} (a float32 has 4); the sum is off by "
        f"{error[now]:.1g} of its length."
    )
    alt = "Left, bytes a value of four ways to send it; right, a falling line of errors."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _name_line(
    axes: Axes, text: str, x: Sequence[int], y: Sequence[float], place: int, count: int
) -> None:
    """Names of lines from below: under the first, over the rising ones and the last, else under."""
    rising = y[-1] > 1.5 * y[0]
    if rising and place:
        axes.text(x[0], 1.3 * y[len(y) // 2], text, ha="left", va="bottom")
        return
    over = place == count - 1
    lift = 5 if over else -21 if rising else -6
    axes.annotate(
        text, (x[-1], y[-1]), xytext=(0, lift), textcoords="offset points",
        va="bottom" if over else "top", ha="right",
    )  # fmt: skip


@house_style
def update_costs(costs: Mapping[str, Mapping[str, Any]], *, caption: str = "") -> Figure:
    """A client's seconds and megabytes for one update, a bar for each scheme, logarithmic.

    ``costs[name]``: ``encrypt`` (seconds), ``bytes``, ``extrapolated`` (hatched, with ≈).
    """
    names = list(costs)
    canvas, panels = new_figure(
        PAGE_WIDTH, 0.95 + 0.42 * len(names), columns=2, width_ratios=(1, 1), sharey=True
    )
    places = np.arange(len(names))[::-1]
    units = (
        ("a client's time", [float(costs[name]["encrypt"]) for name in names], duration),
        ("what it sends", [float(costs[name]["bytes"]) / 1e6 for name in names], megabytes),
    )
    for axes, (title, values, spoken) in zip(panels, units, strict=True):
        low = 10 ** (math.floor(math.log10(min(values))) - 0.3)
        for y, name, value in zip(places, names, values, strict=True):
            guess = bool(costs[name]["extrapolated"])
            colour = COLOURS["defence"] if name.startswith("masks") else COLOURS["server"]
            axes.barh(
                y, value - low, left=low, height=0.66, color=FAINT if guess else colour,
                hatch="///" if guess else None, ec=colour, lw=1,
            )  # fmt: skip
            axes.annotate(
                ("≈ " if guess else "") + spoken(value), (value, y), xytext=(5, 0),
                textcoords="offset points", va="center",
            )  # fmt: skip
        axes.set(xscale="log", title=title, xlim=(low, max(values) * 60), xticks=[])
        axes.minorticks_off()
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
    panels[0].set_yticks(places, names)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
    said = "; ".join(
        f"{name} {'about ' if costs[name]['extrapolated'] else ''}{duration(t)}, {megabytes(b)}"
        for name, t, b in zip(names, units[0][1], units[1][1], strict=True)
    )
    text = f"{said}. Hatched: extrapolated from shorter updates. Both scales are logarithmic."
    alt = f"Bars of time and bytes for {len(names)} ways to hide one update."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def duration(seconds: float) -> str:
    """Two digits in the unit that a person would use."""
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds * 1000:.2g}'):g} ms"


def megabytes(value: float) -> str:
    """Megabytes with two digits, in whole ones from 10 on."""
    return f"{value:.0f} MB" if value >= 10 else f"{value:.2g} MB"


@house_style
def noise_by_trust(
    measured: Mapping[str, Mapping[int, float]],
    expected: Mapping[str, Any],
    *,
    caption: str = "",
) -> Figure:
    """The noise in a mean against the number of clients, for each way to add it, log-log.

    ``measured[name][n]`` a standard deviation (in C); ``expected[name]`` a function of ``n``.
    """
    canvas, axes = new_figure(PAGE_WIDTH, 3.5)
    looks = {
        "local": (COLOURS["warning"], "-", "o"),
        "central": (COLOURS["server"], (0, (4, 3)), "s"),
        "distributed": (COLOURS["defence"], "-", "D"),
    }
    sizes = np.array(sorted(next(iter(measured.values()))), dtype=float)
    fine = np.geomspace(sizes[0], sizes[-1], 30)
    axes.set(
        xscale="log", yscale="log", xlabel="clients", ylabel="noise in a value of the mean (C)"
    )
    ends, said = [], []
    for name, table in measured.items():
        colour, dashes, mark = looks[name]
        values = [float(table[int(n)]) for n in sizes]
        line = [float(expected[name](n)) for n in fine]
        axes.plot(fine, line, color=colour, ls=dashes, zorder=3 if name == "central" else 2)
        size = 11 if name == "central" else 6
        face = "none" if name == "central" else colour
        axes.plot(
            sizes, values, mark, ms=size, mfc=face, mec=colour, mew=1.4, color=colour, clip_on=False
        )
        ends.append((float(fine[-1]), line[-1], name, colour))
        said.append(f"{name} {values[0]:.2g} to {values[-1]:.2g}")
    axes.set_xlim(sizes[0] * 0.8, sizes[-1])
    axes.set_xticks(sizes.tolist(), [f"{n:,.0f}" for n in sizes])
    axes.minorticks_off()
    label_ends(axes, ends)
    text = (
        f"Standard deviation of the noise in a mean, for {sizes[0]:,.0f} to {sizes[-1]:,.0f} "
        f"clients: {'; '.join(said)}. Marks: measured; lines: by the formula."
    )
    alt = "Two falling lines: local noise above; central and distributed noise lie on one another."
    return Figure(canvas, alt=alt, caption=join(text, caption))
