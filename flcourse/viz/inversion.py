"""Figures of recovered pictures: a row for each method; what decibels look like. Chapters 03-06.

Recovered pictures stand beneath the truth, each with its score and its floor (the score of a flat
picture in the true mean colour, which shows no detail). Measurements are in ``viz.measured``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from scipy.ndimage import gaussian_filter

from flcourse.viz.base import (
    COLOURS,
    PAGE_WIDTH,
    Figure,
    blank,
    house_style,
    join,
    show_picture,
    to_array,
    to_picture,
)

ERROR_SCALE = 0.5  # of pixels in [0, 1]: one scale in all error maps that stand side by side

# --------------------------------------------------------------------------- one row a method


@house_style
def recovered_grid(
    truths: Any,
    recovered: Mapping[str, Any],
    psnr: Mapping[str, Any],
    floors: Any,
    *,
    names: Sequence[str] | None = None,
    columns: int | None = None,
    errors: bool = False,
    caption: str = "",
) -> Figure:
    """The true pictures in the first row, then one row a method, with the PSNR beneath each.

    ``truths`` ``[n, c, h, w]``; ``recovered[method]`` the same shape in the same order (a list may
    hold None where an attack stopped); ``psnr[method]`` and ``floors`` ``[n]`` in dB. ``names``
    stand above the truths. More than ``columns`` pictures (default: up to 6) continue below.
    ``errors`` adds an error map beneath each method's row, white where it is 0.5 of 1 or more.
    Raises ``ValueError`` if the counts differ.
    """
    pictures = [to_picture(image) for image in truths]
    bound = to_array(floors).astype(float).reshape(-1)
    scores = {name: to_array(values).astype(float).reshape(-1) for name, values in psnr.items()}
    _check_counts(len(pictures), bound, recovered, scores)
    wide = columns or min(len(pictures), 6)
    sheet = _Sheet(
        wide, -(-len(pictures) // wide), blocks=1 + len(recovered) * (1 + errors), names=bool(names)
    )
    beneath = [f"floor {value:.1f}" for value in bound] if wide <= 4 else _one_decimal(bound)
    title = "private pictures" if wide <= 4 else "private pictures, floor beneath (dB)"
    sheet.block(0, title, pictures, beneath, COLOURS["private"], names)
    for number, (method, images) in enumerate(recovered.items()):
        place = 1 + number * (1 + errors)
        guesses = [None if image is None else to_picture(image) for image in images]
        notes = [f"{value:.1f} dB" for value in scores[method]]
        notes = notes if wide <= 6 else _one_decimal(scores[method])
        sheet.block(place, method, guesses, notes, COLOURS["attacker"])
        if errors:
            word = "largest " if wide <= 6 else ""
            maps = [
                None if guess is None else error_map(true, guess)
                for true, guess in zip(pictures, guesses, strict=True)
            ]
            largest = [
                "" if guess is None else f"{word}{np.abs(true - guess).max():.2g}"
                for true, guess in zip(pictures, guesses, strict=True)
            ]
            sheet.block(
                place + 1, f"error (white = {ERROR_SCALE})", maps, largest, COLOURS["server"]
            )
    medians = "; ".join(
        f"{name}: median {np.median(values):.1f} dB, least {values.min():.1f} dB"
        for name, values in scores.items()
    )
    text = (
        f"Top: {len(pictures)} private picture{'s' * (len(pictures) > 1)} with the score of a flat "
        f"picture beneath ({_range(bound)} dB). Below: what the attacker got, with its PSNR in dB. "
        f"{medians}."
    )
    alt = f"Private pictures in a row, and beneath them what came back by {', '.join(recovered)}."
    return Figure(sheet.canvas, alt=alt, caption=join(text, caption), colours=None)


def error_map(true: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """The mean absolute error of the channels as grey ``[h, w, 3]``, white at ``ERROR_SCALE``."""
    grey = (np.abs(true - guess).mean(axis=2) / ERROR_SCALE).clip(0, 1)
    return np.repeat(grey[:, :, None], 3, axis=2)


class _Sheet:
    """Blocks of square pictures at places counted in inches: a title, then pictures with a note."""

    def __init__(self, wide: int, tall: int, *, blocks: int, names: bool) -> None:
        self.wide, self.tall, gap = wide, tall, 0.1
        self.side = min((PAGE_WIDTH - gap * (wide + 1)) / wide, 1.7)
        self.step = self.side + gap
        self.left = (PAGE_WIDTH - self.step * wide + gap) / 2
        self.name = 0.24 if names else 0.0
        self.row = self.side + 0.3
        self.each = 0.34 + tall * self.row
        self.height = blocks * self.each + 0.06 + self.name
        self.canvas = Canvas(figsize=(PAGE_WIDTH, self.height))

    def block(
        self,
        number: int,
        title: str,
        pictures: Sequence[np.ndarray | None],
        notes: Sequence[str],
        edge: str,
        names: Sequence[str] | None = None,
        *,
        missing: str = "no\npicture",
    ) -> None:
        top = number * self.each + (self.name if number else 0)
        self._write(self.left, top + 0.2, title, weight="bold", size=12.5, ha="left")
        top += 0.3 + (self.name if names else 0)
        for index, (picture, note) in enumerate(zip(pictures, notes, strict=True)):
            row, column = divmod(index, self.wide)
            x, y = self.left + column * self.step, top + row * self.row
            if names:
                self._write(x + self.side / 2, y - 0.07, names[index], size=11.5)
            axes = self._axes(x, y)
            if picture is None:
                blank(axes)
                axes.text(0.5, 0.5, missing, ha="center", va="center", size=11.5)
            else:
                show_picture(axes, picture, edge=edge, width=2)
                self._write(x + self.side / 2, y + self.side + 0.2, note, size=11.5)

    def _axes(self, x: float, y: float) -> Axes:
        width, height = self.side / PAGE_WIDTH, self.side / self.height
        return self.canvas.add_axes((x / PAGE_WIDTH, 1 - y / self.height - height, width, height))

    def _write(self, x: float, y: float, text: str, **style: Any) -> None:
        style = {"ha": "center", **style}
        self.canvas.text(x / PAGE_WIDTH, 1 - y / self.height, text, **style)


def _check_counts(
    count: int, floors: np.ndarray, recovered: Mapping[str, Any], scores: Mapping[str, np.ndarray]
) -> None:
    if set(recovered) != set(scores):
        raise ValueError(f"pictures by {list(recovered)}, but scores of {list(scores)}")
    if len(floors) != count:
        raise ValueError(f"{count} pictures, but {len(floors)} floors")
    for method, images in recovered.items():
        if len(images) != count or len(scores[method]) != count:
            raise ValueError(
                f"{count} true pictures, but {method!r} has {len(images)} pictures and "
                f"{len(scores[method])} scores"
            )


# -------------------------------------------------------------------------- what decibels mean


@house_style
def decibel_ladder(
    picture: Any, levels: Sequence[float] = (10, 15, 20, 30), *, caption: str = ""
) -> Figure:
    """One picture damaged in two ways, noise and blur, to each PSNR in dB; the flat picture last.

    ``picture`` ``[c, h, w]`` in [0, 1]. Damage is found by bisection, so that the score holds after
    clamping. No blur scores less than the flat picture it tends to: such a place stays empty.
    """
    true = to_array(picture).astype(float)
    flat = np.broadcast_to(true.mean(axis=(1, 2), keepdims=True), true.shape)
    floor = picture_psnr(true, flat)
    sheet = _Sheet(len(levels) + 1, 1, blocks=2, names=True)
    ends = {"noise": (flat, f"SSIM {_ssim(true, flat):.2f}"), "blur": (true, "undamaged")}
    said = []
    for number, (kind, damage) in enumerate((("noise", _noisy(true)), ("blur", _blurred(true)))):
        damaged = [_damaged_to(level, true, damage) for level in levels]
        similar = [None if one is None else _ssim(true, one) for one in damaged]
        said += [
            f"{kind} at {level:g} dB {value:.2f}"
            for level, value in zip(levels, similar, strict=True)
            if value is not None
        ]
        pictures = [None if one is None else to_picture(one) for one in (*damaged, ends[kind][0])]
        notes = ["" if value is None else f"SSIM {value:.2f}" for value in similar]
        heads = [f"{level:g} dB" for level in levels] + [f"flat, {floor:.1f} dB"]
        sheet.block(number, kind, pictures, [*notes, ends[kind][1]], COLOURS["server"],
                    None if number else heads, missing="no blur is\nthis bad")  # fmt: skip
    text = (
        f"The same picture at the same PSNR, damaged by noise (top) or blur (bottom). At the "
        f"right the undamaged picture, and the flat one in its mean colour: the floor, "
        f"{floor:.1f} dB. SSIM: "
        f"{', '.join(said)}; flat {_ssim(true, flat):.2f}."
    )
    alt = "A picture with less and less noise, and with less and less blur, at equal PSNR."
    return Figure(sheet.canvas, alt=alt, caption=join(text, caption), colours=None)


def picture_psnr(truth: Any, guess: Any) -> float:
    """PSNR in dB of one picture ``[c, h, w]``, the guess as it would be shown, clamped."""
    true, got = (to_array(picture).astype(float) for picture in (truth, guess))
    error = float(np.mean((true - np.nan_to_num(got, nan=0.5).clip(0, 1)) ** 2))
    return float("inf") if error == 0 else 0 - 10 * float(np.log10(error))


def _noisy(true: np.ndarray) -> Callable[[float], np.ndarray]:
    noise = np.random.default_rng(0).standard_normal(true.shape)
    return lambda amount: np.clip(true + amount * noise, 0, 1)


def _blurred(true: np.ndarray) -> Callable[[float], np.ndarray]:
    return lambda amount: gaussian_filter(true, (0, 10 * amount, 10 * amount), mode="reflect")


def _damaged_to(
    level: float, true: np.ndarray, damage: Callable[[float], np.ndarray]
) -> np.ndarray | None:
    """The picture damaged to ``level`` dB; None where even the greatest damage scores more."""
    low, high = 0.0, 10.0
    if picture_psnr(true, damage(high)) > level:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if picture_psnr(true, damage(middle)) > level else (low, middle)
    return damage(high)


def _ssim(true: np.ndarray, other: np.ndarray) -> float:
    from skimage.metrics import structural_similarity

    return float(structural_similarity(true, np.asarray(other), data_range=1.0, channel_axis=0))


def _one_decimal(values: np.ndarray) -> list[str]:
    return [f"{value:.1f}" for value in values]


def _range(values: np.ndarray) -> str:
    low, high = f"{values.min():.1f}", f"{values.max():.1f}"
    return low if low == high else f"{low}–{high}"
