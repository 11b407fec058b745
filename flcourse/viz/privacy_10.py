"""Figures of one private release: two worlds, the best guess between them, local against central.

Chapter 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.special import ndtr

from flcourse.privacy.gaussian import (
    classic_noise_multiplier,
    gaussian_epsilon,
    trade_off,
)
from flcourse.viz.base import (
    COLOURS,
    FAINT,
    PAGE_WIDTH,
    Figure,
    house_style,
    join,
    label_ends,
    new_figure,
    to_array,
)


@house_style
def two_worlds(
    noise_multiplier: float,
    *,
    delta: float = 1e-5,
    scores: tuple[Any, Any] | None = None,
    caption: str = "",
) -> Figure:
    """What a release looks like without and with one client, and how well anybody can tell.

    Left: the two distributions of the attacker's score, in units of the clipping norm. Right: the
    least that a test misses at each rate of false alarms; below the curve no attacker can be. The
    dashed line is all that the one pair (ε, δ) says. ``scores``: measured ones of releases without
    and with the client, drawn as histograms and as dots on the right.
    """
    z = noise_multiplier
    epsilon = gaussian_epsilon(z, delta)
    canvas, (left, right) = new_figure(PAGE_WIDTH, 3.7, columns=2, width_ratios=(1.1, 1))
    _densities(left, z, scores)
    right_now = float(ndtr(0.5 / z))
    _trade_off(right, z, epsilon, delta)
    if scores is not None:
        _measured(right, *(to_array(world).astype(float) for world in scores))
    canvas.suptitle(
        f"z = σ/C = {z:g}:  ε = {epsilon:.3g} at δ = {power(delta)}",
        x=0.02, ha="left", size=12.5, weight="bold",
    )  # fmt: skip
    text = (
        f"Left: the attacker's score for many releases without (grey) and with (blue) client 3, "
        f"at z = {z:g}. Right: what the best test misses at each rate of false alarms; a blind "
        f"guess is on the straight line, and no test gets into the shaded area. The best guess is "
        f"right in {right_now:.1%} of even cases. "
        f"The dashed line is the promise ε = {epsilon:.3g}, δ = {power(delta)} alone."
    )
    dots = "" if scores is None else "Bars and dots: measured releases."
    alt = (
        "Two bell curves one clipping norm apart, and the curve of missed clients against false "
        "alarms, above the dashed line of the promised epsilon."
    )
    return Figure(canvas, alt=alt, caption=join(text, dots, caption))


def power(value: float) -> str:
    """A δ as a power of ten where it is one (10⁻⁵), else as it is."""
    exponent = int(np.rint(np.log10(value)))
    if not np.isclose(value, 10.0**exponent):
        return f"{value:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _densities(axes: Axes, z: float, scores: tuple[Any, Any] | None) -> None:
    low, high = -3.0 * z, 1 + 3.0 * z
    x = np.linspace(low, high, 400)
    worlds = ((0.0, COLOURS["server"], "out"), (1.0, COLOURS["client"], "in"))
    for place, (middle, colour, name) in enumerate(worlds):
        y = np.exp(-0.5 * ((x - middle) / z) ** 2)
        axes.plot(x, y, color=colour)
        if scores is None:
            axes.fill_between(x, y, color=colour, alpha=0.15, lw=0)
        else:
            values = to_array(scores[place]).astype(float)
            counts, edges = np.histogram(values, bins=20, range=(low, high), density=True)
            axes.stairs(counts * z * np.sqrt(2 * np.pi), edges, fill=True, color=colour, alpha=0.3)
        side = -1 if place == 0 else 1
        axes.annotate(
            name, (middle + side * 0.75 * z, np.exp(-0.5 * 0.75**2)), xytext=(side * 8, 6),
            textcoords="offset points", ha="right" if place == 0 else "left", weight="bold",
        )  # fmt: skip
    top = 1.27 if scores is None else 1.42  # measured bars may reach above the curves
    axes.plot([0.5, 0.5], [0, top - 0.17], color=COLOURS["attacker"], ls=(0, (4, 3)), lw=1.6)
    axes.text(0.5, top - 0.08, "guess out | guess in", ha="center", va="center", size=11.5)
    axes.set(xlim=(low, high), ylim=(0, top), yticks=[], xlabel="attacker's score (in C)")
    axes.spines["left"].set_visible(False)


def _trade_off(axes: Axes, z: float, epsilon: float, delta: float) -> None:
    alpha = np.concatenate([[0.0], np.geomspace(1e-6, 0.5, 200), np.linspace(0.5, 1, 100)])
    beta = trade_off(z, alpha)
    axes.fill_between(alpha, beta, color=FAINT, alpha=0.45, lw=0)
    dashes = (0, (4, 2))
    axes.plot([0, 1], [1, 0], color=COLOURS["server"], lw=1.4, label="blind")
    axes.plot(alpha, beta, color=COLOURS["attacker"], label="best test")
    floor = promised(alpha, epsilon, delta)
    axes.plot(alpha, floor, color=COLOURS["defence"], ls=dashes, lw=1.8, label="(ε, δ) alone")
    axes.legend(
        loc="upper right",
        frameon=False,
        handlelength=1.1,
        handletextpad=0.5,
        borderpad=0,
        fontsize=11.5,
    )
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="false alarms", ylabel="missed",
        xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal",
    )  # fmt: skip


def promised(alpha: Any, epsilon: float, delta: float) -> np.ndarray:
    """The least type II error that (ε, δ) allows at type I error ``alpha``, of the same shape.

    ``max(0, 1 − δ − e^ε α, e^(−ε) (1 − δ − α))``: Wasserman & Zhou 2010; Kairouz, Oh & Viswanath
    2015, "The Composition Theorem for Differential Privacy".
    """
    a = np.asarray(alpha, dtype=float)
    first = 1 - delta - np.exp(min(epsilon, 700)) * a
    return np.maximum(0, np.maximum(first, np.exp(-epsilon) * (1 - delta - a)))


def _measured(axes: Axes, out: np.ndarray, inside: np.ndarray) -> None:
    thresholds = np.quantile(np.concatenate([out, inside]), np.linspace(0.05, 0.95, 13))
    alarms = [(out > t).mean() for t in thresholds]
    missed = [(inside <= t).mean() for t in thresholds]
    axes.plot(alarms, missed, "o", color=COLOURS["attacker"], ms=5, mec="white", mew=0.8)


@house_style
def classic_against_exact(delta: float = 1e-5, *, caption: str = "") -> Figure:
    """What the classic Gaussian formula's noise truly gives, for every ε that it is asked for.

    Above the line the noise is too little for the promise. The theorem covers only ε < 1.
    """
    asked = np.geomspace(0.05, 100, 160)
    true = np.array([classic_gives(e, delta) for e in asked])
    canvas, axes = new_figure(PAGE_WIDTH, 3.5)
    axes.axvspan(asked[0], 1, color=COLOURS["defence"], alpha=0.12, lw=0)
    axes.axhline(1, color=COLOURS["server"], lw=1.4)
    axes.fill_between(
        asked, true / asked, 1, where=list(true > asked), color=COLOURS["warning"], alpha=0.35, lw=0
    )
    axes.plot(asked, true / asked, color=COLOURS["client"])
    for e in (2, 8, 16, 64):
        gives = classic_gives(e, delta)
        axes.plot([e], [gives / e], "o", color=COLOURS["client"], ms=6)
        axes.annotate(
            f"{e} → {gives:.3g}", (e, gives / e), xytext=(-7, 7), textcoords="offset points",
            ha="right",
        )  # fmt: skip
    axes.text(0.22, 2.2, "the theorem\nholds", ha="center", va="center")
    axes.text(1.15, 1.9, "above the line:\ntoo little noise", va="center", ha="left")
    axes.text(97, 0.72, "below the line: more than needed", va="center", ha="right")
    axes.set(
        xscale="log", xlim=(asked[0], asked[-1]), ylim=(0.5, 2.6),
        xlabel=f"ε that was asked for (δ = {power(delta)})", ylabel="true ε / asked ε",
    )  # fmt: skip
    axes.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    axes.minorticks_off()
    crossing = float(asked[int(np.argmax(true > asked))])
    text = (
        f"Noise by the classic formula at δ = {power(delta)}: the true ε over the one asked for. "
        f"Up to about {crossing:.1f} there is more noise than needed; beyond, too little: whoever "
        f"asks for 64 gets {classic_gives(64, delta):.1f}. Green: where the theorem holds."
    )
    alt = "A curve of the true over the asked epsilon, below one at first and above one later."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def classic_gives(epsilon: float, delta: float) -> float:
    """The true ε of the noise that the classic formula names for ``epsilon``."""
    return gaussian_epsilon(classic_noise_multiplier(epsilon, delta, beyond_theorem=True), delta)


@house_style
def errors_by_clients(
    measured: Mapping[str, Mapping[int, Any]],
    expected: Mapping[str, Any],
    *,
    caption: str = "",
) -> Figure:
    """How far a private share is off (standard error), against the number of clients, log-log.

    ``measured[name][n]``: one error for each repetition; drawn is their root mean square.
    ``expected[name]`` is a function ``n -> standard error``, drawn as a line.
    """
    canvas, axes = new_figure(PAGE_WIDTH, 3.5)
    colours = (COLOURS["warning"], COLOURS["defence"])
    ends, said = [], []
    sizes = np.array(sorted(next(iter(measured.values()))), dtype=float)
    fine = np.geomspace(sizes[0], sizes[-1], 50)
    axes.set(xscale="log", yscale="log", xlabel="clients", ylabel="standard error of the share")
    for (name, table), colour in zip(measured.items(), colours, strict=True):
        line = np.array([expected[name](n) for n in fine])
        rms = [float(np.sqrt(np.mean(to_array(table[int(n)]).astype(float) ** 2))) for n in sizes]
        axes.plot(fine, line, color=colour)
        axes.plot(sizes, rms, "o", color=colour, ms=7, mec="white")
        ends.append((float(fine[-1]), float(line[-1]), name, colour))
        said.append(f"{name}: {rms[0]:.2g} to {rms[-1]:.2g}")
    axes.set_xlim(sizes[0] * 0.8, sizes[-1])
    axes.minorticks_off()
    label_ends(axes, ends)
    text = (
        f"Standard error of a share from {sizes[0]:,.0f} to {sizes[-1]:,.0f} clients, on "
        f"logarithmic scales. Dots: measured ({'; '.join(said)}); lines: by the formula."
    )
    alt = "Two falling lines; that of local noise falls half as steeply as that of central noise."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def private_histogram(
    names: Sequence[str],
    truth: Any,
    estimates: Mapping[str, Any],
    errors: Mapping[str, Any],
    *,
    caption: str = "",
) -> Figure:
    """True shares as bars, private estimates as marks with a stroke of two standard errors.

    ``truth`` and each of ``estimates`` and ``errors`` have one value for each of ``names``, shares
    in [0, 1].
    """
    shares = 100 * to_array(truth).astype(float)
    canvas, axes = new_figure(PAGE_WIDTH, 1.4 + 0.34 * len(names))
    rows = np.arange(len(names))
    axes.barh(rows, shares, height=0.72, color=FAINT, label="truth")
    looks = zip(estimates.items(), (COLOURS["warning"], COLOURS["defence"]), "sD", strict=True)
    worst = {}
    for place, ((name, values), colour, mark) in enumerate(looks):
        middle = 100 * to_array(values).astype(float)
        reach = 200 * to_array(errors[name]).astype(float)
        at = rows + (0.17 if place else -0.17)
        axes.hlines(at, middle - reach, middle + reach, color=colour, lw=3, alpha=0.45)
        axes.plot(middle, at, mark, color=colour, ms=6, label=name)
        worst[name] = float(np.abs(middle - shares).max())
    axes.axvline(0, color=COLOURS["server"], lw=1.2)
    axes.set_yticks(rows, names)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel="clients with this word (%)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower right", frameon=False)
    said = ", ".join(f"{name} {value:.2g}" for name, value in worst.items())
    text = (
        "Grey: the true share of clients that hold each word. Marks: estimates, with strokes of "
        f"two standard errors. Farthest off, in points: {said}."
    )
    alt = f"Bars of {len(names)} shares with two private estimates beside each."
    return Figure(canvas, alt=alt, caption=join(text, caption))
