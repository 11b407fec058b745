"""Defences against several attackers in one picture. Chapter 06."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flcourse.viz.base import (
    COLOURS,
    PAGE_WIDTH,
    Figure,
    finite,
    house_style,
    join,
    new_figure,
    series_colours,
    to_array,
)

_MARKS = ("s", "D", "o", "^", "v")


@house_style
def attackers_by_defence(
    psnr: Mapping[str, Mapping[str, Any]], floor: float, *, caption: str = ""
) -> Figure:
    """One row a defence, one mark an attacker: the median PSNR, with a stroke between quartiles.

    ``psnr[attacker][defence]`` in dB, one value a run; ``floor`` in dB. Attackers stand side by
    side within a row, in their order, so that none hides another.
    Raises ``ValueError`` if the attackers do not face the same defences.
    """
    names = list(next(iter(psnr.values())))
    if any(list(table) != names for table in psnr.values()):
        raise ValueError(f"every attacker needs the defences {names}, in this order")
    chosen = series_colours(psnr)
    canvas, axes = new_figure(PAGE_WIDTH, 1.3 + 0.44 * len(names))
    middles = {}
    for place, (attacker, table) in enumerate(psnr.items()):
        values = [finite(to_array(table[name]).astype(float)) for name in names]
        low, middle, high = (np.array([np.quantile(v, q) for v in values]) for q in _QUARTILES)
        rows = np.arange(len(names)) + 0.22 * (place - (len(psnr) - 1) / 2)
        axes.hlines(rows, low, high, color=chosen[attacker], lw=4, alpha=0.35)
        mark = _MARKS[place % len(_MARKS)]
        axes.plot(middle, rows, mark, color=chosen[attacker], ms=6, label=attacker)
        middles[attacker] = middle
    for row in range(len(names) - 1):
        axes.axhline(row + 0.5, color="#e5e7eb", lw=0.8)
    axes.axvline(floor, color=COLOURS["server"], lw=1.6, ls=(0, (4, 3)))
    axes.text(floor, len(names) - 0.35, " floor", va="center", size=11.5)
    axes.set_yticks(np.arange(len(names)), names)
    axes.set(ylim=(len(names) - 0.1, -0.6), xlabel="PSNR (dB)")
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(psnr), frameon=False)
    said = [
        f"{name}: " + ", ".join(f"{middles[attacker][row]:.0f}" for attacker in psnr)
        for row, name in enumerate(names)
    ]
    text = (
        f"Median PSNR in dB, strokes between quartiles, of {', '.join(psnr)} (in this order). "
        f"{'; '.join(said)}. Dashed: a flat picture, {floor:.1f} dB."
    )
    alt = f"For {len(names)} defences, the PSNR that each of {len(psnr)} attackers reaches."
    return Figure(canvas, alt=alt, caption=join(text, caption))


_QUARTILES = (0.25, 0.5, 0.75)
