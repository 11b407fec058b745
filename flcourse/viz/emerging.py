"""Figures of an attack at work: the picture as it emerges, its loss and its score. Chapter 03."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flcourse.viz.base import (
    COLOURS,
    PAGE_WIDTH,
    Figure,
    finite,
    house_style,
    join,
    label_ends,
    new_figure,
    series_colours,
    show_picture,
    to_array,
    to_picture,
)
from flcourse.viz.inversion import ERROR_SCALE, error_map, picture_psnr

if TYPE_CHECKING:
    from flcourse.widgets import Control


def emerging(
    truth: Any,
    snapshots: Sequence[Any],
    floor: float,
    *,
    index: int = 0,
    frames: int = 12,
    start: int | None = None,
    caption: str = "",
) -> Control:
    """A slider over the attack's evaluations: truth, the attacker's picture so far, the error map.

    ``truth`` ``[c, h, w]``; ``snapshots`` as in ``Recovery.snapshots``, of which at most ``frames``
    are drawn, the last one always; ``index`` picks one picture of a batch; ``floor`` in dB.
    ``start`` is the frame shown first (default: the last). The error map has one scale throughout.
    Raises ``ValueError`` for fewer than two snapshots.
    """
    from flcourse.widgets import scrubber  # widgets draws with viz: imported only when it is needed

    chosen = thin(snapshots, frames)
    scores = [picture_psnr(truth, snapshot.images[index]) for snapshot in chosen]
    drawn = {snapshot.evaluation: snapshot for snapshot in chosen}

    def frame(evaluation: int) -> Figure:
        return emerging_frame(truth, drawn[evaluation], floor, index=index)

    text = (
        f"The attacker's picture after {chosen[0].evaluation} to {chosen[-1].evaluation} "
        f"evaluations of its objective: {scores[0]:.1f} to {scores[-1]:.1f} dB (floor "
        f"{floor:.1f} dB). The attacker sees only its own loss, {chosen[0].loss:.2g} to "
        f"{chosen[-1].loss:.2g}; the score needs the truth. White in the error map: "
        f"{ERROR_SCALE} of 1 or more."
    )
    return scrubber(
        frame, list(drawn), label="evaluations", start=len(drawn) - 1 if start is None else start,
        caption=join(text, caption),
    )  # fmt: skip


@house_style
def emerging_frame(truth: Any, snapshot: Any, floor: float, *, index: int = 0) -> Figure:
    """One position of ``emerging``: truth, the attacker's picture so far, the error map."""
    psnr = picture_psnr(truth, snapshot.images[index])
    true, now = to_picture(truth), to_picture(snapshot.images[index])
    canvas, grid = new_figure(PAGE_WIDTH, PAGE_WIDTH / 3 + 0.7, columns=3)
    panels = (
        (true, "private picture", f"floor {floor:.1f} dB", "private"),
        (now, "so far", f"PSNR {psnr:.1f} dB", "attacker"),
        (error_map(true, now), "error", f"attacker's loss {snapshot.loss:.2g}", "server"),
    )
    for axes, (picture, title, note, role) in zip(grid, panels, strict=True):
        show_picture(axes, picture, edge=COLOURS[role], width=2.5)
        axes.set_title(title, loc="center", size=12)
        axes.set_xlabel(note, size=11.5)
    alt = (
        f"After {snapshot.evaluation} evaluations: the private picture, the attacker's picture at "
        f"{psnr:.1f} dB, and their difference."
    )
    return Figure(canvas, alt=alt, caption=f"PSNR {psnr:.1f} dB, floor {floor:.1f} dB.",
                  colours=256)  # fmt: skip


def thin(snapshots: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the snapshots, evenly among them, first and last included.

    Raises ``ValueError`` for fewer than two snapshots or a ``count`` below two.
    """
    if len(snapshots) < 2 or count < 2:
        raise ValueError(
            f"{len(snapshots)} snapshots, of which {count} are to be drawn: both must be two or "
            "more (an attack keeps snapshots when it is asked to)"
        )
    places = np.linspace(0, len(snapshots) - 1, min(count, len(snapshots))).round().astype(int)
    return [snapshots[place] for place in places]


@house_style
def loss_and_psnr(
    runs: Mapping[str, Any],
    truth: Any = None,
    floor: float | None = None,
    *,
    index: int = 0,
    caption: str = "",
) -> Figure:
    """The attacker's loss (logarithmic) and the PSNR against evaluations, one line a run.

    ``runs[name]`` is a ``Recovery`` with ``history`` and ``snapshots`` (then ``truth`` ``[c, h,
    w]`` is needed), or a mapping ``{"loss": [...], "psnr": [[evaluation, dB], ...]}``, as stored.
    Each loss has its own unit: compare its fall, not its height. ``floor`` in dB.
    Raises ``ValueError`` for a ``Recovery`` without ``truth`` or snapshots.
    """
    traces = {name: _trace(name, run, truth, index) for name, run in runs.items()}
    canvas, (upper, lower) = new_figure(PAGE_WIDTH, 5.2, rows=2, sharex=True)
    colours = [COLOURS["attacker"]] if len(traces) == 1 else series_colours(traces).values()
    losses, ends, finals = [], [], []
    for (name, (loss, places, psnr)), colour in zip(traces.items(), colours, strict=True):
        upper.semilogy(np.arange(1, len(loss) + 1), loss, color=colour, lw=1.8)
        lower.plot(places, finite(psnr), color=colour, marker="o", ms=4)
        if len(traces) > 1:
            at = int(np.flatnonzero(np.isfinite(loss) & (loss > 0))[-1])  # it may have diverged
            losses.append((at + 1, loss[at], name, colour))
            ends.append((places[-1], finite(psnr)[-1], name, colour))
        finals.append(f"{name}: loss {loss[0]:.2g} to {loss[-1]:.2g}, {psnr[-1]:.1f} dB at the end")
    last = max(max(len(loss), places[-1]) for loss, places, _ in traces.values())
    upper.set(ylabel="attacker's loss", xlim=(0, last))
    lower.set(xlabel="evaluations of the objective", ylabel="PSNR (dB)")
    lower.set_ylim(bottom=0)
    if floor is not None:
        lower.axhline(floor, color=COLOURS["server"], lw=1.4, ls=(0, (4, 3)))
        ends.append((last, floor, "floor", COLOURS["server"]))
    canvas.draw_without_rendering()
    label_ends(lower, ends)
    label_ends(upper, losses)
    text = f"What the attacker sees (above) and what it got (below). {'; '.join(finals)}."
    text += "" if floor is None else f" Dashed: a flat picture, {floor:.1f} dB."
    alt = (
        f"Two line charts over evaluations: the attacker's loss and the PSNR of {', '.join(runs)}."
    )
    return Figure(canvas, alt=alt, caption=join(text, caption))


def _trace(
    name: str, run: Any, truth: Any, index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if isinstance(run, Mapping):
        points = to_array(run["psnr"]).astype(float)
        return to_array(run["loss"]).astype(float), points[:, 0], points[:, 1]
    if truth is None:
        raise ValueError(f"{name!r} is a recovery: give truth=picture to score its snapshots")
    if not run.snapshots:
        raise ValueError(f"{name!r} kept no snapshots: ask for some, match_gradients(snapshots=20)")
    places = np.array([snapshot.evaluation for snapshot in run.snapshots])
    psnr = np.array([picture_psnr(truth, one.images[index]) for one in run.snapshots])
    return to_array(run.history).astype(float), places, psnr
