"""Figures about leakage: what was private, what travelled, what came back. Intro, chapters 02, 03.

A reconstruction is always shown as truth, what the attacker got and the error map, with its score
and the floor beneath (the score of a flat picture in the mean colour, which shows no detail).
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from flcourse.viz.base import (
    COLOURS,
    PAGE_WIDTH,
    Figure,
    HtmlFigure,
    blank,
    house_style,
    new_figure,
    show_picture,
    to_array,
    to_picture,
)


@house_style
def picture_grid(
    images: Any,
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    caption: str = "",
    alt: str = "",
) -> Figure:
    """Pictures ``[n, c, h, w]`` (or a list of ``[c, h, w]``) in [0, 1], with names below them."""
    pictures = [to_picture(image) for image in images]
    wide = columns or min(len(pictures), 5)
    tall = -(-len(pictures) // wide)
    side = PAGE_WIDTH / max(wide, 3)
    height = tall * (side + (0.2 if titles else 0))
    canvas, grid = new_figure(side * wide, height, rows=tall, columns=wide, squeeze=False)
    for axes in grid.flat[len(pictures) :]:
        blank(axes)
    for index, (axes, picture) in enumerate(zip(grid.flat, pictures, strict=False)):
        show_picture(axes, picture)
        if titles:
            axes.set_xlabel(titles[index])
    named = f": {', '.join(titles)}" if titles else ""
    return Figure(canvas, alt=alt or f"{len(pictures)} pictures{named}.", caption=caption,
                  colours=None)  # fmt: skip


@house_style
def reconstruction(
    truth: Any,
    recovered: Any,
    scores: Mapping[str, float],
    floor: float,
    *,
    gradient: Any = None,
    caption: str = "",
) -> Figure:
    """Truth, (the gradient's bytes,) what came back, and the error map, with score and floor.

    ``scores`` by name, with PSNR first, e.g. ``{"PSNR (dB)": 41.3, "SSIM": 0.99}``; ``floor`` is
    the PSNR in dB of the flat picture (``metrics.flat_floor``). ``gradient`` is any tensor of it.
    """
    true, got = to_picture(truth), to_picture(recovered)
    error = np.abs(true - got).mean(axis=2)
    columns = 3 if gradient is None else 4
    canvas, grid = new_figure(PAGE_WIDTH, PAGE_WIDTH / columns + 0.75, columns=columns)
    panels = iter(grid)
    _panel(next(panels), true, "private picture", "", COLOURS["private"])
    if gradient is not None:
        _panel(next(panels), byte_picture(gradient), "what was sent", first_bytes(gradient),
               COLOURS["server"])  # fmt: skip
    lines = [_score(name, value) for name, value in scores.items()]
    _panel(next(panels), got, "what came back", "\n".join([*lines, f"floor {floor:.1f} dB"]),
           COLOURS["attacker"])  # fmt: skip
    scale = _error_scale(error)
    last = next(panels)
    _panel(last, error / scale, "error", f"white = {scale:.2g} of 1\nlargest {error.max():.2g}",
           COLOURS["server"])  # fmt: skip
    text = (
        f"The attacker's picture scores {lines[0]}; a flat picture in the mean colour would score "
        f"{floor:.1f} dB. The largest error of a pixel is "
        f"{error.max():.2g} on a scale from 0 to 1."
    )
    alt = "Side by side: the private picture, what the attacker recovered, and their difference."
    return Figure(canvas, alt=alt, caption=f"{text} {caption}".strip(), colours=None)


@house_style
def hero(
    photo: Any,
    gradient_row: Any,
    recovered: Any,
    psnr: float,
    floor: float,
    *,
    caption: str = "",
) -> Figure:
    """The course in one picture: a private photo, the bytes that left the phone, what they gave.

    ``photo``, ``recovered`` ``[c, h, w]``, ``gradient_row`` ``[d]``; ``psnr``, ``floor`` in dB.
    """
    canvas, grid = new_figure(
        PAGE_WIDTH, 2.5, columns=5, gridspec_kw={"width_ratios": [1, 0.2, 1, 0.2, 1]}
    )
    values = to_array(gradient_row).size
    _panel(grid[0], to_picture(photo), "on the phone", "a private photo",
           COLOURS["private"], 4)  # fmt: skip
    _panel(grid[2], byte_picture(gradient_row), "on the wire", f"{values:,} numbers",
           COLOURS["server"], 4)  # fmt: skip
    _panel(grid[4], to_picture(recovered), "at the server", _decibels(psnr),
           COLOURS["attacker"], 4)  # fmt: skip
    for axes in grid[1::2]:
        blank(axes)
        axes.add_patch(FancyArrowPatch((0.05, 0.5), (0.95, 0.5), transform=axes.transAxes,
                                       arrowstyle="simple,head_length=9,head_width=13,tail_width=4",
                                       color=COLOURS["server"], lw=0))  # fmt: skip
    text = (
        f"Left: a photo that stays on a phone. Middle: the bytes of the gradient that the phone "
        f"sends instead ({values:,} numbers, drawn as grey levels). Right: the picture that a "
        f"server computes from them, {_decibels(psnr)} from the original (a flat picture in the "
        f"mean colour: {floor:.1f} dB)."
    )
    alt = (
        "A private photo, the noise-like bytes of its gradient, and the photo read back from them."
    )
    return Figure(canvas, alt=alt, caption=f"{text} {caption}".strip(), colours=None)


def record_table_comparison(
    names: Sequence[str],
    truth: Any,
    recovered: Any,
    *,
    units: Sequence[str] | None = None,
    caption: str = "",
) -> HtmlFigure:
    """A record of a table beside what was read back from its gradient, with the relative error.

    ``truth`` and ``recovered`` ``[f]`` in real units. Raises ``ValueError`` if lengths differ.
    """
    true, got = to_array(truth).astype(float), to_array(recovered).astype(float)
    if not (len(names) == len(true) == len(got)):
        raise ValueError(f"{len(names)} names, {len(true)} true and {len(got)} recovered values")
    errors = np.abs(got - true) / np.maximum(np.abs(true), 1e-12)
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:400">{html.escape(name)}</th>'
        + "".join(
            _cell(text)
            for text in (f"{t:.5g}{unit}", f"{g:.5g}{unit}", html.escape(_percent(error)))
        )
        + "</tr>"
        for name, t, g, error, unit in zip(
            names, true, got, errors, _units(units, len(names)), strict=True
        )
    )
    heads = ("measurement", "in the patient's record", "read from the gradient", "off by")
    head = "".join(f'<th scope="col" style="text-align:right">{text}</th>' for text in heads)
    head = head.replace("text-align:right", "text-align:left", 1)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    text = "\n".join(f"{n}: {t:.5g} | {g:.5g}" for n, t, g in zip(names, true, got, strict=True))
    largest, median = _percent(errors.max()), _percent(float(np.median(errors)))
    middle = "" if median == largest else f", the median {median}"
    note = f"{len(names)} measurements; the largest relative error is {largest}{middle}."
    return HtmlFigure(table, text=text, caption=f"{note} {caption}".strip())


def _cell(text: str) -> str:
    return f'<td style="text-align:right">{text}</td>'


def byte_picture(values: Any, side: int = 64) -> np.ndarray:
    """The first ``side²`` bytes of float32 values as grey levels ``[side, side, 3]`` in [0, 1]."""
    raw = np.frombuffer(to_array(values).astype("<f4").tobytes(), dtype=np.uint8)[: side * side]
    height = max(len(raw) // side, 1)
    grey = np.resize(raw, (height, side)) if len(raw) < side else raw[: height * side]
    square = np.resize(grey.reshape(-1), (side, side)) / 255
    return np.repeat(square[:, :, None], 3, axis=2)


def first_bytes(values: Any, count: int = 5) -> str:
    """The first bytes in hexadecimal, as they stand in the message: ``3f 8a …``."""
    raw = to_array(values).astype("<f4").tobytes()[:count]
    return " ".join(f"{byte:02x}" for byte in raw) + " …"


def _panel(
    axes: Axes, picture: np.ndarray, title: str, note: str, edge: str, width: float = 2.5
) -> None:
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, axis=2).clip(0, 1)
    show_picture(axes, picture, edge=edge, width=width)
    axes.set_title(title, loc="center", size=12)
    axes.set_xlabel(note, size=11.5)


def _error_scale(error: np.ndarray) -> float:
    """A round upper end for the error map, at least 0.01: rounding is not drawn as error."""
    steps = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    return float(steps[np.searchsorted(steps, min(float(np.quantile(error, 0.98)), 1.0))])


def _score(name: str, value: float) -> str:
    """``"PSNR (dB)", 41.3`` reads as ``PSNR 41.3 dB``."""
    short, _, unit = name.partition(" (")
    return f"{short} {value:.3g} {unit.rstrip(')')}".rstrip()


def _decibels(psnr: float) -> str:
    return "exact (PSNR ∞)" if np.isinf(psnr) else f"PSNR {psnr:.0f} dB"


def _percent(error: float) -> str:
    return "<\N{NO-BREAK SPACE}0.001\N{NO-BREAK SPACE}%" if error < 1e-5 else f"{100 * error:.2g} %"


def _units(units: Sequence[str] | None, count: int) -> list[str]:
    return [f" {html.escape(unit)}" if unit else "" for unit in (units or [""] * count)]
