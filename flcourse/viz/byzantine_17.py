"""Figures of chapter 17: rows that cancel, what rules give away, backdoors, groups. Chapter 17."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from flcourse.viz.base import (
    COLOURS,
    INK,
    PAGE_WIDTH,
    SERIES,
    Figure,
    finite,
    house_style,
    join,
    label_ends,
    new_figure,
    to_array,
)

Runs = Mapping[str, Any]  # setting -> one value for each seed


@house_style
def cancelling(own: float, pairs: Sequence[float], *, caption: str = "") -> Figure:
    """One honest number among pairs ±m of liars, with the mean and the median of all."""
    sent = np.array([own, *(sign * m for m in pairs for sign in (1, -1))])
    mean, median = float(sent.mean()), float(np.median(sent))
    canvas, axes = new_figure(PAGE_WIDTH, 2.3)
    reach = 1.15 * np.abs(sent).max()
    axes.axhline(0, color="#9CA3AF", lw=1.2, zorder=0)
    lies = sent[1:]
    axes.plot(lies, np.zeros_like(lies), "X", ms=13, color=COLOURS["attacker"], mec="white")
    axes.plot([own], [0], "o", ms=15, color=COLOURS["client"])
    axes.plot([mean], [0], "D", ms=9, color=COLOURS["server"])
    _pointer(axes, own, 0.75, f"client 3: {own:g}")
    _pointer(axes, mean, -0.85, f"mean {mean:g}", right=mean > own)
    if median != mean:
        _pointer(axes, median, -0.45, f"median {median:g}", right=median >= mean)
    axes.text(-reach, 0.35, f"{len(lies)} colluders", va="bottom")
    axes.set(xlim=(-reach, reach), ylim=(-1.2, 1.2), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    said = ", ".join(f"{lie:+g}" for lie in lies).replace("-", "−")
    text = (
        f"Client 3 sends {own:g}, the colluders {said}. The lies cancel: the mean is "
        f"{own:g}/{len(sent)} = {mean:g}. The median is {median:g}."
    )
    alt = "A number line: one honest number, pairs of lies on either side, the mean and the median."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _pointer(axes: Axes, x: float, y: float, text: str, *, right: bool = True) -> None:
    style = {"arrowstyle": "-", "color": INK, "lw": 1.0, "shrinkB": 7}
    axes.annotate(text, (x, 0), xytext=(x + (0.25 if right else -0.25), y), arrowprops=style,
                  ha="left" if right else "right", va="center")  # fmt: skip


@house_style
def given_away(
    psnr: Mapping[str, Runs], floor: float, *, names: Mapping[str, str], caption: str = ""
) -> Figure:
    """How well the victim's picture comes back from each rule's result, one dot a run.

    ``psnr[lie][rule]`` in dB; ``names`` says what each lie is called; ``floor``: a flat picture.
    """
    rules = list(next(iter(psnr.values())))
    colours = (COLOURS["client"], COLOURS["attacker"], COLOURS["warning"])
    canvas, axes = new_figure(PAGE_WIDTH, 0.75 + 0.62 * len(rules))
    said = []
    for shift, (lie, runs), colour in zip((0.24, 0, -0.24), psnr.items(), colours, strict=False):
        for place, rule in enumerate(reversed(rules)):
            values = finite(to_array(runs[rule]).astype(float))
            at = np.full(len(values), place + shift)
            axes.plot(values, at, "o", ms=7, color=colour, alpha=0.85, mec="white")
        middle = ", ".join(
            f"{rule} {np.median(finite(to_array(runs[rule]))):.0f}" for rule in rules
        )
        axes.plot([], [], "o", ms=7, color=colour, label=names[lie])
        said.append(f"{names[lie]}: {middle}")
    axes.axvline(floor, color=COLOURS["server"], lw=1.6, ls=(0, (4, 3)))
    axes.text(floor, len(rules) - 0.42, " flat picture", va="bottom")
    axes.set_yticks(range(len(rules)), list(reversed(rules)))
    axes.set(xlabel="client 3's photo, PSNR (dB)", ylim=(-0.6, len(rules) - 0.05))
    canvas.legend(loc="outside lower center", ncols=3, frameon=False, handletextpad=0.1)
    text = (
        f"What an attacker makes of each rule's result. Median dB. {'; '.join(said)}. A flat "
        f"picture has {floor:.0f} dB. One dot for each random network."
    )
    alt = f"Dots of PSNR for the rules {', '.join(rules)}, with and without colluders."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def backdoor_by_scale(
    scores: Mapping[str, Mapping[str, Runs]],
    *,
    label: str = "scale γ of the liar's row",
    caption: str = "",
) -> Figure:
    """Success of the backdoor and clean accuracy against a setting, a panel for each trigger.

    ``scores[trigger][setting]`` has ``success`` and ``clean``, each one value in [0, 1] a seed.
    """
    canvas, panels = new_figure(PAGE_WIDTH, 3.2, columns=len(scores), sharey=True, squeeze=False)
    said = []
    for axes, (trigger, table) in zip(panels[0], scores.items(), strict=True):
        x = np.arange(len(table))
        for key, colour, name in _SCORES:
            runs = [100 * to_array(cell[key]).astype(float) for cell in table.values()]
            axes.plot(x, [run.mean() for run in runs], "o-", color=colour, ms=5, label=name)
            axes.fill_between(x, [run.min() for run in runs], [run.max() for run in runs],
                              color=colour, alpha=0.2, lw=0)  # fmt: skip
        axes.set_xticks(x, list(table))
        axes.set(title=trigger, xlabel=label, ylim=(0, 100))
        last = table[list(table)[-1]]
        said.append(
            f"{trigger} at {list(table)[-1]}: success {_percent(last['success'])}, accuracy "
            f"{_percent(last['clean'])}"
        )
    panels[0][0].set_ylabel("of the pictures (%)")
    panels[0][0].legend(loc="center left", frameon=False)
    text = f"Means over seeds, bands from least to most. {'; '.join(said)}."
    alt = f"Lines of success and accuracy over {label}, for {' and '.join(scores)}."
    return Figure(canvas, alt=alt, caption=join(text, caption))


_SCORES = (
    ("clean", COLOURS["client"], "clean accuracy"),
    ("success", COLOURS["attacker"], "backdoor success"),
)


@house_style
def backdoor_defences(
    panels: Mapping[str, Mapping[str, Runs]], before: float, *, caption: str = ""
) -> Figure:
    """Success and clean accuracy under each defence, one panel for each kind of attack.

    ``panels[attack][defence]`` as in ``backdoor_by_scale``; ``before``: success before any attack.
    """
    names = list(next(iter(panels.values())))
    canvas, sheets = new_figure(
        PAGE_WIDTH, 1.2 + 0.36 * len(names), columns=len(panels), sharey=True, squeeze=False
    )
    said = []
    for axes, (attack, table) in zip(sheets[0], panels.items(), strict=True):
        for place, name in enumerate(reversed(names)):
            for key, colour, _ in _SCORES:
                values = 100 * to_array(table[name][key]).astype(float)
                axes.plot([values.min(), values.max()], [place, place], color=colour, lw=5,
                          alpha=0.35)  # fmt: skip
                axes.plot([values.mean()], [place], "o", color=colour, ms=7)
        axes.axvline(100 * before, color=COLOURS["server"], lw=1.4, ls=(0, (4, 3)))
        axes.set(title=attack, xlabel="of the pictures (%)", xlim=(0, 100))
        axes.set_yticks(range(len(names)), list(reversed(names)))
        best = min(names, key=lambda name: float(np.mean(to_array(table[name]["success"]))))
        worst = max(names, key=lambda name: float(np.mean(to_array(table[name]["success"]))))
        said.append(
            f"{attack}: least success {_percent(table[best]['success'])} ({best}), most "
            f"{_percent(table[worst]['success'])} ({worst})"
        )
    for _, colour, name in _SCORES:
        sheets[0][0].plot([], [], "o", color=colour, ms=7, label=name)
    handles, labels = sheets[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    text = (
        f"Vermilion: success of the backdoor, blue: clean accuracy; dots are means, bars go from "
        f"least to most. {'; '.join(said)}. Dashed: what is mistaken without any attack, "
        f"{100 * before:.0f} %."
    )
    alt = f"Success and accuracy for {len(names)} defences, under {' and '.join(panels)}."
    return Figure(canvas, alt=alt, caption=join(text, caption))


@house_style
def price_of_groups(
    accuracy: Mapping[str, Runs], psnr: Runs, floor: float, *, marked: str = "", caption: str = ""
) -> Figure:
    """Left: accuracy against the group's size, a line for each number of liars. Right: the photo.

    ``accuracy["2 liars"][size]`` in [0, 1], ``psnr[size]`` in dB, one value a seed; ``marked``: a
    size to draw a line at.
    """
    canvas, (left, right) = new_figure(PAGE_WIDTH, 3.5, columns=2, width_ratios=(1.15, 1))
    sizes = list(psnr)
    x = np.arange(len(sizes))
    shades = (COLOURS["defence"], SERIES[3], COLOURS["warning"], COLOURS["attacker"])
    ends, said = [], []
    for (liars, runs), colour in zip(accuracy.items(), shades, strict=False):
        values = [100 * to_array(runs[size]).astype(float) for size in sizes]
        middle = [value.mean() for value in values]
        left.plot(x, middle, "o-", color=colour, ms=5)
        left.fill_between(x, [v.min() for v in values], [v.max() for v in values], color=colour,
                          alpha=0.15, lw=0)  # fmt: skip
        ends.append((float(x[-1]), float(middle[-1]), liars, colour))
        points = ", ".join(f"{m:.0f} at {s}" for m, s in zip(middle, sizes, strict=True))
        said.append(f"{liars}: {points}")
    values = [finite(to_array(psnr[size]).astype(float)) for size in sizes]
    right.plot(x, [np.median(value) for value in values], color=COLOURS["attacker"])
    for place, value in zip(x, values, strict=True):
        right.plot([place] * len(value), value, "o", color=COLOURS["attacker"], ms=6, mec="white")
    right.axhline(floor, color=COLOURS["server"], lw=1.6, ls=(0, (4, 3)))
    right.text(0, floor - 0.8, "flat picture", va="top")
    for axes, title in ((left, "accuracy (%)"), (right, "photo, PSNR (dB)")):
        axes.set_xticks(x, sizes)
        axes.set(xlabel="clients in a masked group", title=title, ylim=(0, None))
        if marked:
            axes.axvline(sizes.index(marked), color=INK, lw=8, alpha=0.12, zorder=0)
    canvas.draw_without_rendering()
    label_ends(left, ends)
    text = (
        f"Left: accuracy in % by size of the group and number of liars ({'; '.join(said)}), bands "
        f"from least to most. Right: client 3's photo from the sum of its group, "
        f"{np.median(values[0]):.0f} dB at {sizes[0]} and {np.median(values[-1]):.0f} at "
        f"{sizes[-1]}; a flat picture has {floor:.0f}."
    )
    alt = "Two charts over the size of masked groups: accuracy under liars, and the photo's PSNR."
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _percent(values: Any) -> str:
    return f"{100 * float(np.mean(to_array(values))):.0f} %"
