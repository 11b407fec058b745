"""Figures of composition: what a run costs by whom, claims beside the truth, audits. Chapter 11."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, NullLocator

from flcourse.viz.base import (
    COLOURS,
    INK,
    PAGE_WIDTH,
    Figure,
    house_style,
    join,
    label_ends,
    new_figure,
    to_array,
)

_LINES: Mapping[str, tuple[str, Any]] = {
    "basic": ("#6B7280", "-"),
    "advanced": ("#6B7280", (0, (4, 2))),
    "zcdp": ("#E69F00", "-"),
    "gdp": ("#CC79A7", "-"),
    "rdp": ("#0072B2", "-"),
    "pld": ("#009E73", "-"),
    "clt": ("#D55E00", (0, (2, 1.5))),
}
_PAPER = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none"}
_PLAIN = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@house_style
def noise_by_accountant(
    multipliers: Mapping[str, float], best: str, *, unit: str = "clip norms", caption: str = ""
) -> Figure:
    """One bar a way to account: the noise that it asks for to keep the same promise.

    ``best`` names the bar in the defence's green. Raises ``ValueError`` if it is not among them.
    """
    if best not in multipliers:
        raise ValueError(f"best={best!r} is not among {list(multipliers)}")
    names, values = list(multipliers), list(multipliers.values())
    canvas, axes = new_figure(PAGE_WIDTH, 0.75 + 0.42 * len(names))
    colours = [COLOURS["defence" if name == best else "server"] for name in names]
    axes.barh(names, values, color=colours, height=0.66)
    for row, value in enumerate(values):
        axes.text(value, row, f" {_number(value)}", va="center")
    axes.set(xlabel=f"noise that has to be added ({unit})", xlim=(0, 1.12 * max(values)))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    said = ", ".join(f"{name} {_number(value)}" for name, value in multipliers.items())
    text = f"Noise that keeps the same promise, in {unit}: {said}."
    alt = f"Bars: the noise that each of {len(names)} ways to account asks for; {best} the least."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def scores_by_rounds(
    scores: Mapping[int, tuple[Any, Any]], *, alarms: float = 0.01, caption: str = ""
) -> Figure:
    """What the attacker sees after some rounds: its scores ``(without, with)`` client 3's row.

    ``scores[rounds]``: two vectors of scores. The dashed line leaves a share ``alarms`` of the
    scores without the row to its right; the share of the others there is written beside it.
    """
    canvas, panels = new_figure(PAGE_WIDTH, 2.7, columns=len(scores), squeeze=False, sharey=True)
    found = {}
    for axes, (rounds, pair) in zip(panels[0], scores.items(), strict=True):
        without, present = (to_array(values).astype(float) for values in pair)
        centre, scale = without.mean(), without.std()  # in units of the noise
        without, present = (without - centre) / scale, (present - centre) / scale
        limit = np.quantile(without, 1 - alarms)
        found[rounds] = float(np.mean(present > limit))
        bins = np.linspace(-4, 9, 66)
        axes.hist(without, bins, density=True, color=COLOURS["server"], alpha=0.55)
        axes.hist(present, bins, density=True, color=COLOURS["private"], alpha=0.55)
        axes.axvline(limit, color=COLOURS["attacker"], lw=1.6, ls=(0, (3, 2)))
        axes.text(9, 0.53, f"finds {found[rounds]:.0%}", va="top", ha="right", weight="bold")
        plural = "" if rounds == 1 else "s"
        axes.set(title=f"{rounds:,} round{plural}", yticks=[], xlim=(-4, 9), ylim=(0, 0.54))
        axes.spines["left"].set_visible(False)
    panels[0][len(scores) // 2].set_xlabel("attacker's score (in standard deviations of the noise)")
    said = ", ".join(f"{share:.0%} after {rounds:,}" for rounds, share in found.items())
    text = (
        "The attacker's score when client 3's row is missing (grey) and when it is there (blue). "
        f"With {alarms:.0%} false alarms (dashed) it notices client 3 in {said}."
    )
    alt = "Two hills of scores that lie on each other after one round and move apart with more."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def claimed_and_true(rows: Mapping[str, tuple[float, float]], *, caption: str = "") -> Figure:
    """One row a run: the ε that was claimed (ring) and the ε that is true (dot), logarithmic."""
    canvas, axes = new_figure(PAGE_WIDTH, 1.1 + 0.45 * len(rows))
    for row, (said, true) in enumerate(rows.values()):
        colour = COLOURS["defence" if true <= said else "attacker"]
        axes.plot([said, true], [row, row], color=colour, lw=2.4, alpha=0.5)
        axes.plot(said, row, "o", mfc="white", mec=INK, ms=9, mew=1.6)
        axes.plot(true, row, "o", color=colour, ms=9)
        low, high = sorted((said, true))
        axes.annotate(_number(high), (high, row), (9, 0), textcoords="offset points", va="center")
        axes.annotate(
            _number(low), (low, row), (-9, 0), textcoords="offset points", va="center", ha="right"
        )
    axes.set_yticks(range(len(rows)), list(rows))
    values = [value for pair in rows.values() for value in pair]
    axes.set(xscale="log", xlim=(min(values) / 2.2, 2.2 * max(values)))
    axes.set(ylim=(len(rows) - 0.5, -0.6), xlabel="ε (ring: claimed; dot: what the run really has)")
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    told = "; ".join(f"{name}: {said:.3g} → {true:.3g}" for name, (said, true) in rows.items())
    alt = f"For {len(rows)} runs a ring at the claimed ε and a dot at the true one."
    return Figure(canvas, alt=alt, caption=join(f"Claimed → true ε. {told}.", caption))


@house_style
def epsilon_over_steps(
    steps: Sequence[int], curves: Mapping[str, tuple[str, Sequence[float]]], *, caption: str = ""
) -> Figure:
    """``ε`` of the same run after each number of steps; ``curves[method] = (name, values)``."""
    canvas, axes = new_figure(PAGE_WIDTH, 3.9)
    ends = []
    for method, (name, values) in curves.items():
        colour, dashes = _LINES[method]
        axes.plot(steps, values, color=colour, ls=dashes, lw=3 if method == "pld" else 2)
        ends.append((float(steps[-1]), float(values[-1]), name, colour))
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="ε", xlim=(steps[0], steps[-1]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PLAIN)
    label_ends(axes, ends)
    said = "; ".join(f"{name}: {_number(values[-1])}" for name, values in curves.values())
    text = f"After {steps[-1]:,} steps ε is, by {said}."
    alt = f"ε against the number of steps, one line for each of {len(curves)} ways to account."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def epsilon_by_accountant(
    answers: Mapping[str, tuple[str, float | str]], *, caption: str = ""
) -> Figure:
    """One row a method: a dot at its ε, or the reason why it gives none.

    ``answers[method] = (name, ε or a reason)``. The axis is the same for every run, so that the
    positions of a control can be compared. Dashed: the tightest bound. A triangle: beyond the end.
    """
    low, high = 1e-3, 1e4
    canvas, axes = new_figure(PAGE_WIDTH, 0.8 + 0.4 * len(answers))
    best = answers["pld"][1]
    if isinstance(best, float):
        axes.axvline(np.clip(best, low, high), color=COLOURS["defence"], lw=1.4, ls=(0, (4, 3)))
    said = []
    for row, (method, (name, value)) in enumerate(answers.items()):
        if isinstance(value, str):
            left = not isinstance(best, float) or best > 1  # away from the dashed line
            place = {"x": 1.3 * low, "ha": "left"} if left else {"x": high / 1.3, "ha": "right"}
            look = {"va": "center", "size": 11, "color": "#4B5563", "bbox": _PAPER}
            axes.text(y=row, s=value, **place, **look)
            said.append(f"{name}: {value}")
            continue
        mark = "o" if value <= high else ">"
        axes.plot(np.clip(value, low, high), row, mark, color=_LINES[method][0], ms=9)
        right = value < 300
        axes.annotate(
            _number(value), (np.clip(value, low, high), row), (9 if right else -9, 0),
            textcoords="offset points", va="center", ha="left" if right else "right",
            bbox=_PAPER,
        )  # fmt: skip
        said.append(f"{name}: {_number(value)}")
    axes.set_yticks(range(len(answers)), [name for name, _ in answers.values()])
    axes.set(xscale="log", xlim=(low, high), ylim=(len(answers) - 0.5, -0.5), xlabel="ε")
    axes.set_xticks([0.001, 0.01, 0.1, 1, 10, 100, 1000, 10000])
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    alt = f"ε of one run by {len(answers)} ways to account, on a logarithmic axis."
    return Figure(canvas, alt=alt, caption=join("; ".join(said) + ".", caption))


@house_style
def claimed_over_true(
    claimed: Any,
    true: Any,
    steps: Sequence[int],
    multipliers: Sequence[float],
    *,
    caption: str = "",
) -> Figure:
    """A table of ``claimed / true``, ``[len(steps), len(multipliers)]``: below 1 it understates.

    Vermilion cells promise privacy that is not there, amber cells waste some that is.
    """
    ratio = to_array(claimed).astype(float) / to_array(true).astype(float)
    colours = [COLOURS["attacker"], "#FBE3D4", "#FDF3DC", COLOURS["warning"]]
    stops = list(zip((0, 0.49, 0.51, 1), colours, strict=True))
    both_ways = LinearSegmentedColormap.from_list("claims", stops)
    canvas, axes = new_figure(PAGE_WIDTH, 0.9 + 0.46 * len(steps))
    axes.imshow(np.clip(np.log10(ratio), -1, 1), cmap=both_ways, vmin=-1, vmax=1, aspect="auto")
    for row, column in np.ndindex(*ratio.shape):
        value = ratio[row, column]
        text = f"÷ {1 / value:.2g}" if value < 1 else f"× {_short(value)}"
        axes.text(column, row, text, ha="center", va="center", size=11.5)
    axes.set_xticks(range(len(multipliers)), [f"{z:g}" for z in multipliers])
    axes.set_yticks(range(len(steps)), [f"{count:,}" for count in steps])
    axes.set(xlabel="noise multiplier z", ylabel="steps")
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    low = int((ratio < 1).sum())
    text = (
        f"The claim as a multiple of the true ε, from {ratio.min():.2g} to {_short(ratio.max())} "
        f"times it. Too little in {low} of {ratio.size} cells (vermilion, ÷), too much in the "
        "others (amber, ×)."
    )
    alt = f"A table of {len(steps)} by {len(multipliers)} cells: claimed ε divided by true ε."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _short(value: float) -> str:
    if value < 9950:
        return f"{float(f'{value:.2g}'):,g}"
    exponent = int(np.log10(value))
    return f"{value / 10**exponent:.0f}e{exponent}"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low}–{high}"


@house_style
def audits(
    panels: Mapping[str, tuple[float, float, Mapping[str, Sequence[float]]]], *, caption: str = ""
) -> Figure:
    """Lower bounds on ε that audits have shown, one dot a seed, beside the claim.

    ``panels[title] = (claimed ε, most that so many trials can show, {variant: bounds})``.
    Right of the claim's line the claim is refuted.
    """
    rows = [len(bounds) for _, _, bounds in panels.values()]
    canvas, grid = new_figure(
        PAGE_WIDTH, 1.1 * len(rows) + 0.37 * sum(rows), rows=len(rows), squeeze=False,
        height_ratios=rows,
    )  # fmt: skip
    told = []
    for axes, (title, (claimed, most, bounds)) in zip(grid[:, 0], panels.items(), strict=True):
        axes.axvline(claimed, color=INK, lw=1.5, ls=(0, (4, 3)))
        axes.axvline(most, color=COLOURS["server"], lw=1.2, ls=(0, (1, 2)))
        above = {"transform": axes.get_xaxis_transform(), "va": "bottom", "size": 11}
        axes.text(claimed, 1.0, f"claimed {claimed:.2f}", ha="left", **above)
        axes.text(most, 1.0, f"trials end at {most:.1f}", ha="right", **above)
        for row, values in enumerate(bounds.values()):
            for value in values:
                colour = COLOURS["attacker" if value > claimed else "defence"]
                axes.plot(value, row, "o", color=colour, ms=8, alpha=0.7, clip_on=False)
        told.append(f"{title}: " + ", ".join(f"{name} {_span(v)}" for name, v in bounds.items()))
        axes.set_yticks(range(len(bounds)), list(bounds))
        axes.set(ylim=(len(bounds) - 0.5, -0.5), xlim=(-0.02 * most, 1.04 * most))
        axes.set_title(title, pad=22)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    grid[-1, 0].set_xlabel("lower bound on ε that the audit shows")
    alt = "For an honest mechanism and three mistakes the ε that audits show, beside the claim."
    text = f"One dot a seed; vermilion refutes the claim. {'. '.join(told)}."
    return Figure(canvas, alt=alt, caption=join(text, caption))
