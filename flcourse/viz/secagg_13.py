"""Figures of secure aggregation: masks that cancel, what the server sees, and a round's messages.

Chapter 13.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from flcourse.secagg import STAGES
from flcourse.viz.base import (
    COLOURS,
    FAINT,
    INK,
    PAGE_WIDTH,
    Figure,
    house_style,
    join,
    label_ends,
    new_figure,
    to_array,
)

Masks = Mapping[tuple[int, int], int]


def _sheet(width: float, height: float) -> tuple[Any, Axes]:
    """Axes over a whole figure of the page's width, in units of their own, origin bottom left."""
    canvas, axes = new_figure(PAGE_WIDTH, PAGE_WIDTH * height / width)
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return canvas, axes


def _box(axes: Axes, x: float, y: float, w: float, h: float, colour: str, text: str) -> None:
    shape = "round,pad=0,rounding_size=0.12"
    corner = (x - w / 2, y - h / 2)
    axes.add_patch(FancyBboxPatch(corner, w, h, boxstyle=shape, ec=colour, fc="white", lw=2))
    axes.text(x, y, text, ha="center", va="center", linespacing=1.4)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **look: Any) -> None:
    style = {"arrowstyle": "-|>", "lw": 1.6, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    axes.annotate("", end, start, arrowprops={**style, **look})


@house_style
def masked_sum(values: Sequence[int], masks: Masks, *, caption: str = "") -> Figure:
    """Three clients, a mask for each pair, what each sends, and what the server adds up.

    ``masks[i, j]`` is added by client ``i`` and taken away by client ``j``, counted from 1.
    """
    if len(values) != 3:
        raise ValueError(f"the figure has room for 3 clients, got {len(values)}")
    sent = list(values)
    for (i, j), mask in masks.items():
        sent[i - 1] += mask
        sent[j - 1] -= mask
    canvas, axes = _sheet(10, 5.6)
    heights = (4.9, 2.8, 0.7)
    for place, y in enumerate(heights):
        _box(axes, 1.95, y, 2.0, 0.95, COLOURS["client"], f"client {place + 1}\n{values[place]}")
        own = [
            f"{'+' if i == place + 1 else '−'} {mask}"
            for (i, j), mask in masks.items()
            if place + 1 in (i, j)
        ]
        line = f"{values[place]} {' '.join(own)} = {_signed(sent[place])}"
        axes.text(4.75, y + 0.15, line, ha="center", va="bottom")
        axes.plot([2.98, 6.5], [y, y], color=COLOURS["client"], lw=1.6)
        _arrow(axes, (6.48, y), (7.55, 2.8 + 0.35 * (1 - place)), color=COLOURS["client"])
    for (i, j), mask in masks.items():
        top, low = heights[min(i, j) - 1], heights[max(i, j) - 1]
        if abs(i - j) == 1:
            axes.plot([1.95, 1.95], [top - 0.48, low + 0.48], color=COLOURS["defence"])
            axes.text(2.1, (top + low) / 2, f"mask {mask}", va="center")
        else:
            axes.plot([0.93, 0.55, 0.55, 0.93], [top, top, low, low], color=COLOURS["defence"])
            axes.text(0.45, (top + low) / 2, f"mask {mask}", ha="right", va="center", rotation=90)
    _box(axes, 8.7, 2.8, 2.2, 1.5, COLOURS["server"], f"server\nadds: {_signed(sum(sent))}")
    said = ", ".join(_signed(number) for number in sent)
    text = (
        f"Each pair of clients has a mask (green) that one adds and the other takes away. The "
        f"server receives {said}; their sum is {sum(values)}, that of the values "
        f"{', '.join(map(str, values))}."
    )
    alt = "Three clients, joined in pairs by masks, send masked numbers to a server that adds them."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _signed(number: int) -> str:
    return str(number).replace("-", "−")


@house_style
def normal_masks(
    scales: Sequence[float],
    scores: Sequence[float],
    errors: Sequence[float],
    *,
    modular: tuple[float, float],
    caption: str = "",
) -> Figure:
    """Float masks drawn from normals: what they give away and what they spoil, by their scale.

    ``scores``: the attacker's, in standard deviations, for each of ``scales``; ``errors``: the
    largest error of the sum. ``modular``: both for masks modulo 2^k.
    """
    canvas, (left, right) = new_figure(PAGE_WIDTH, 3.5, columns=2)
    x = np.asarray(scales, dtype=float)
    rows = (
        (left, np.abs(np.asarray(scores, float)), COLOURS["attacker"], "attacker's score (σ)"),
        (right, np.asarray(errors, float), COLOURS["warning"], "largest error of the sum"),
    )
    for place, (axes, y, colour, name) in enumerate(rows):
        axes.plot(x, y, "o-", color=colour, ms=5)
        axes.axhline(modular[place], color=COLOURS["defence"], lw=2)
        axes.set(xscale="log", yscale="log", xlabel="scale of the masks", title=name)
        axes.minorticks_off()
    left.text(x[0], modular[0] * 1.25, "modulo $2^{32}$", va="bottom")
    right.text(x[0], modular[1] * 1.4, "modulo $2^{32}$", va="bottom")
    left.axhspan(0.01, 3, color=FAINT, alpha=0.5, lw=0)
    left.text(x[-1], 0.03, "no more than chance", ha="right")
    left.set_ylim(0.01, None)
    text = (
        f"Masks drawn as floats from a normal distribution. Left: how far client 3's row stands "
        f"out of its masked message, {abs(scores[0]):,.0f} σ at a scale of {x[0]:g} and "
        f"{abs(scores[-1]):.1f} σ at {x[-1]:g}. Right: what the same masks do to the sum "
        f"({errors[-1]:.1g} at {x[-1]:g}). Green: uniform masks modulo 2³²."
    )
    alt = "Two curves over the scale of the masks: the leak falls and the error of the sum rises."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def word_histograms(
    shown: Mapping[str, Any], bits: int, *, bins: int = 64, caption: str = ""
) -> Figure:
    """How the words of several vectors lie in 0..2^bits − 1, one histogram each: ``[d]`` unsigned.

    A value near 0 and one near 2^bits are small numbers of different sign.
    """
    canvas, panels = new_figure(PAGE_WIDTH, 2.9, columns=len(shown), sharey=True)
    edges = np.linspace(0, 2.0**bits, bins + 1)
    colours = (COLOURS["client"], COLOURS["defence"], COLOURS["server"])
    said = []
    for axes, (name, words), colour in zip(panels, shown.items(), colours, strict=True):
        values = np.asarray(words).astype(float)
        counts, _ = np.histogram(values, edges)
        share = 100 * counts / len(values)
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.85)
        axes.set(xlim=(0, 2.0**bits), title=name, yscale="log", ylim=(0.01, 130))
        axes.set_xticks(
            [0, 2.0 ** (bits - 1), 2.0**bits], ["0", f"$2^{{{bits - 1}}}$", f"$2^{{{bits}}}$"]
        )
        axes.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
        axes.minorticks_off()
        said.append(f"{name}: {share.min():.2g} to {share.max():.2g} %")
    panels[0].set_ylabel("of all values (%)")
    text = (
        f"Where the words of each vector lie between 0 and 2^{bits}, in {bins} bins of equal "
        f"width. Least and most in a bin: {'; '.join(said)}."
    )
    alt = f"{len(shown)} histograms: piled up at both ends, flat, and piled up again."
    return Figure(canvas, alt=alt, caption=join(text, caption))


_DOES = {
    "advertise_keys": "1 keys",
    "share_keys": "2 shares",
    "masked_input": "3 vectors",
    "consistency_check": "4 who is in",
    "unmasking": "5 open",
}


@house_style
def message_sequence(
    transcript: Sequence[Any],
    num_clients: int,
    survivors: Collection[int],
    *,
    ends: str = "",
    caption: str = "",
) -> Figure:
    """A round as a sequence diagram, drawn from its messages (``SecureSum.transcript``).

    One line for each client, one for the server, time downwards; a client's line ends where it
    sends no more. ``survivors``: who is in the sum. ``ends``: what came of the round.
    """
    stages = [stage for stage in STAGES if any(sent.stage == stage for sent in transcript)]
    step, top = 1.45, 0.5
    height = top + step * len(STAGES) + 1.05
    canvas, axes = _sheet(10, height)
    xs = {index: 2.15 + index * 4.3 / max(num_clients - 1, 1) for index in range(num_clients)}
    server = 8.0
    last: dict[int, int] = {}
    for number, stage in enumerate(STAGES):
        y = height - top - 0.42 - step * number
        live = stage in stages
        axes.text(0.05, y - 0.42, _DOES[stage], va="center", color=INK if live else "#9CA3AF",
                  weight="bold" if live else "normal")  # fmt: skip
        axes.plot([0, 10], [y + 0.3, y + 0.3], color="#E5E7EB", lw=0.8)
        if not live:
            continue
        _stage(axes, [sent for sent in transcript if sent.stage == stage], xs, server, y, last)
    _lifelines(axes, xs, server, last, height - top, survivors, ends)
    sizes = {stage: [s.size for s in transcript if s.stage == stage and s.receiver == -1]
             for stage in stages}  # fmt: skip
    said = ", ".join(f"{_DOES[s]} {min(n):,}" for s, n in sizes.items())
    final = max(last.values(), default=0)
    gone = sorted(index for index in xs if last.get(index, -1) < final)
    who = ", ".join(str(index + 1) for index in gone)
    left = f"Client{'s' * (len(gone) > 1)} {who} vanish{'es' * (len(gone) == 1)}. "
    text = (
        f"{left if gone else ''}Bytes that each client sends: {said}. Blue: to the server; grey: "
        f"back, to all that are still there. {ends}"
    )
    alt = f"A sequence diagram of {num_clients} clients and a server in five stages."
    return Figure(canvas, alt=alt, caption=join(text.strip(), caption))


def _stage(
    axes: Axes, sent: Sequence[Any], xs: Mapping[int, float], server: float, y: float,
    last: dict[int, int],
) -> None:  # fmt: skip
    """One stage's arrows: each client's own to the server, then one line back to all."""
    ups = [message for message in sent if message.receiver == -1]
    downs = [message for message in sent if message.sender == -1]
    number = STAGES.index(sent[0].stage)
    for message in ups:
        at = y - 0.13 * message.sender
        _arrow(axes, (xs[message.sender], at), (server, at), color=COLOURS["client"], lw=1.3)
        axes.plot([xs[message.sender]], [at], "o", color=COLOURS["client"], ms=4)
        last[message.sender] = number
    axes.text(server + 0.15, y - 0.26, f"{max((m.size for m in ups), default=0):,} B", va="center")
    if downs:
        at = y - 0.85
        axes.plot([min(xs[m.receiver] for m in downs), server], [at, at], color=COLOURS["server"],
                  lw=1.3, ls=(0, (3, 2)))  # fmt: skip
        for message in downs:
            axes.plot([xs[message.receiver]], [at], "v", color=COLOURS["server"], ms=6)


def _lifelines(
    axes: Axes, xs: Mapping[int, float], server: float, last: Mapping[int, int], top: float,
    survivors: Collection[int], ends: str,
) -> None:  # fmt: skip
    """A line for each party down to where it is last heard of; below, who is in the sum."""
    foot, final = 0.75, max(last.values(), default=0)
    for index, x in xs.items():
        stays = last.get(index, -1) == final
        ends_at = top - 0.2 - 1.45 * (last.get(index, -1) + 1)
        low = foot if stays and final == len(STAGES) - 1 else ends_at
        axes.plot([x, x], [top - 0.05, low], color=COLOURS["client"], lw=1.2, zorder=0)
        axes.text(x, top + 0.2, f"{index + 1}", ha="center", va="center", weight="bold")
        if not stays:
            axes.plot([x], [low], "X", color=COLOURS["warning"], ms=10, mec="white")
        inside = index in survivors
        mark, colour = ("●", COLOURS["defence"]) if inside else ("○", "#6B7280")
        axes.text(x, 0.32, mark, ha="center", va="center", color=colour, size=15)
    axes.plot([server, server], [top - 0.05, foot], color=COLOURS["server"], lw=2.4, zorder=0)
    axes.text(server, top + 0.2, "server", ha="center", va="center", weight="bold")
    axes.text(0.05, top + 0.2, "client", va="center", weight="bold")
    axes.text(0.05, 0.32, "in the sum", va="center", weight="bold")
    axes.text(server, 0.32, "sum opened" if survivors else "no sum", ha="center", va="center",
              weight="bold")  # fmt: skip


@house_style
def bytes_over_plain(
    sizes: Sequence[int], expansion: Mapping[str, Sequence[float]], *, caption: str = ""
) -> Figure:
    """What a client sends over its plain vector, against the number of clients, log x.

    ``expansion[name]``: a ratio for each of ``sizes``.
    """
    canvas, axes = new_figure(PAGE_WIDTH, 3.3)
    colours = (COLOURS["client"], COLOURS["defence"], COLOURS["warning"])
    x = to_array(list(sizes)).astype(float)
    ends, said = [], []
    axes.axhline(1, color=COLOURS["server"], lw=1.4)
    for (name, ratios), colour in zip(expansion.items(), colours, strict=False):
        y = np.asarray(ratios, dtype=float)
        axes.plot(x, y, "o-", color=colour, ms=5)
        ends.append((float(x[-1]), float(y[-1]), name, colour))
        said.append(f"{name}: {y[-1]:.2f}")
    axes.set(xscale="log", xlabel="clients", ylabel="bytes sent / plain bytes")
    axes.set_xlim(x[0], x[-1])
    axes.minorticks_off()
    label_ends(axes, ends)
    text = (
        f"Bytes that a client sends over those of its plain vector, for {x[0]:,.0f} to "
        f"{x[-1]:,.0f} clients. At {x[-1]:,.0f}: {'; '.join(said)}."
    )
    alt = "Lines over the number of clients: all pairs rises, a hundred neighbours stays flat."
    return Figure(canvas, alt=alt, caption=join(text, caption))


Timed = Mapping[int, Mapping[str, Sequence[float]]]


@house_style
def round_seconds(
    by_clients: Mapping[str, Timed], by_entries: Timed, *, caption: str = ""
) -> Figure:
    """CPU seconds of one client and of the server, against clients and against entries, log-log.

    ``by_clients[graph][n]`` and ``by_entries[d]`` hold ``client`` and ``server``, a value a run.
    The first graph is drawn solid, the others dashed.
    """
    canvas, panels = new_figure(PAGE_WIDTH, 3.6, columns=2, sharey=True)
    styles = ("-", (0, (3, 2)))
    lines = [
        (panels[0], f"{who}, {graph}", who, style, cells)
        for (graph, cells), style in zip(by_clients.items(), styles, strict=False)
        for who in ("server", "client")
    ]
    lines += [(panels[1], who, who, "-", by_entries) for who in ("server", "client")]
    ends: tuple[list[Any], list[Any]] = ([], [])
    for axes, name, who, style, cells in lines:
        x = np.array(sorted(cells), dtype=float)
        runs = [np.asarray(cells[int(size)][who], dtype=float) for size in x]
        middle = np.array([np.median(values) for values in runs])
        axes.plot(x, middle, ls=style, color=COLOURS[who], lw=2)
        for place, values in zip(x, runs, strict=True):
            axes.plot([place] * len(values), values, "o", color=COLOURS[who], ms=4)
        ends[axes is panels[1]].append((float(x[-1]), float(middle[-1]), name, COLOURS[who]))
    for axes, label in zip(panels, ("clients", "values in a row"), strict=True):
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.minorticks_off()
    panels[0].set_ylabel("seconds of one core")
    canvas.draw_without_rendering()
    for axes, names in zip(panels, ends, strict=True):
        label_ends(axes, names)
    said = [f"{name}: {_seconds(y)} at {x:,.0f}" for part in ends for x, y, name, _ in part]
    text = f"Left, by clients: {'; '.join(said[:-2])}. Right, by values: {'; '.join(said[-2:])}."
    alt = (
        "Rising lines on logarithmic scales: the server above a client; with neighbours the "
        "client's line is lower; against the length of the row the lines are flat at first."
    )
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"
