"""The house style of all figures: palette, type size, direct labels, and ``Figure`` itself.

A figure is drawn without pyplot (nothing stays open), written as PNG at twice the page's pixels and
reduced to a palette, so that a page with many slider positions stays small. Its bytes depend on the
data and on the version of matplotlib alone.
"""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from PIL import Image

P = ParamSpec("P")
R = TypeVar("R")

# Okabe-Ito, one colour an actor, the same in every figure. For marks and fills; text is INK.
COLOURS = {
    "client": "#0072B2",
    "private": "#0072B2",
    "server": "#6B7280",
    "attacker": "#D55E00",
    "defence": "#009E73",
    "warning": "#E69F00",
}
# Where a figure compares several things of one kind, in this order (still Okabe-Ito).
# Lines without a role: no vermilion and no green, which mean attacker and defence everywhere.
SERIES = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#6B7280")
INK = "#1F2937"
FAINT = "#D1D5DB"
PIXELS_PER_INCH = 96  # of a page; the PNG has twice as many
PAGE_WIDTH = 6.6  # inches: the text column less its card; at 390 px a 12 pt label is 9 px high

STYLE: Any = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same letters
    "font.size": 12,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9CA3AF",
    "axes.titlecolor": INK,
    "xtick.color": "#9CA3AF",
    "ytick.color": "#9CA3AF",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


def house_style(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorator of every function that draws: the course's style instead of the reader's own."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **kwargs)

    return styled


def new_figure(
    width: float = PAGE_WIDTH, height: float = 3.6, *, rows: int = 1, columns: int = 1, **grid: Any
) -> tuple[Canvas, Any]:
    """A figure ``width`` × ``height`` inches on a white card and its axes, as ``plt.subplots``.

    Call it inside a function that has ``@house_style``. ``grid`` goes to ``Figure.subplots``.
    """
    canvas = Canvas(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots(rows, columns, **grid)


class Figure:
    """A finished figure: PNG, alt text (what is drawn), caption (what it shows, with its numbers).

    ``colours`` is the size of the PNG's palette; None keeps every colour, for photographs.
    Raises ``ValueError`` without alt text: a reader who cannot see the figure needs it.
    """

    def __init__(
        self, canvas: Canvas, *, alt: str, caption: str = "", colours: int | None = 64
    ) -> None:
        if not alt.strip():
            raise ValueError("a figure needs alt text that says what is drawn: alt='...'")
        self.alt, self.caption = alt, caption
        self.png = _png(canvas, colours)
        width, height = canvas.get_size_inches()
        self.width, self.height = round(width * PIXELS_PER_INCH), round(height * PIXELS_PER_INCH)

    def image(self) -> str:
        """The picture alone, as an ``<img>`` that carries its bytes."""
        data = base64.b64encode(self.png).decode("ascii")
        return (
            f'<img alt="{html.escape(self.alt)}" width="{self.width}" height="{self.height}" '
            'style="width:auto;max-width:100%;height:auto;background:#fff" '
            f'src="data:image/png;base64,{data}">'
        )

    def html(self) -> str:
        """A ``<figure class="flc-figure">`` with the picture and its caption."""
        return (
            f'<figure class="flc-figure" style="margin:1em 0">{self.image()}'
            f"{caption_html(self.caption)}</figure>"
        )

    def save(self, path: str | Path) -> Path:
        """Write the PNG to ``path`` and return it."""
        Path(path).write_bytes(self.png)
        return Path(path)

    def __repr__(self) -> str:
        return f"[figure: {self.alt}] {self.caption}".rstrip()

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": repr(self)}


class HtmlFigure:
    """A figure made of text (a table): it can be selected, read aloud, and wraps on a phone."""

    def __init__(self, body: str, *, text: str, caption: str = "") -> None:
        self.body, self.text, self.caption = body, text, caption

    def image(self) -> str:
        """The body alone, where a ``Figure`` has its picture."""
        return self.body

    def html(self) -> str:
        """A ``<figure class="flc-figure flc-table">`` around the body."""
        return (
            '<figure class="flc-figure flc-table" style="margin:1em 0;overflow-x:auto">'
            f"{self.body}{caption_html(self.caption)}</figure>"
        )

    def __repr__(self) -> str:
        return f"{self.text}\n{self.caption}".rstrip()

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": repr(self)}


def caption_html(caption: str) -> str:
    """A ``<figcaption>``, or nothing for an empty caption."""
    return f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""


def _png(canvas: Canvas, colours: int | None) -> bytes:
    raw = io.BytesIO()
    canvas.savefig(raw, format="png", dpi=2 * PIXELS_PER_INCH)
    picture = Image.open(raw).convert("RGB")
    if colours is not None:
        picture = picture.quantize(colours, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    picture.save(packed, format="PNG", optimize=True)  # no metadata: no date, no version
    return packed.getvalue()


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], *, gap: float = 1.35
) -> None:
    """Write each line's name right of its end ``(x, y, name, colour)``, moved apart where crowded.

    ``gap`` is the least distance of two names in lines of text. Call it when the axis limits are
    final. A thin line joins a name that had to move to its end.
    """
    if not ends:
        return
    figure = axes.figure
    size = matplotlib.rcParams["font.size"]
    height = axes.get_window_extent().height / figure.dpi * 72
    step = gap * size / height  # in parts of the axis
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    to_axes = axes.transData - axes.transAxes  # logarithmic axes, too
    wanted = [float(to_axes.transform((ends[i][0], ends[i][1]))[1]) for i in order]
    for (x, y, name, colour), place in zip(
        [ends[i] for i in order], spread(wanted, step), strict=True
    ):
        axes.plot([x], [y], "o", color=colour, markersize=6, clip_on=False, zorder=5)
        axes.annotate(
            name, (x, y), xytext=(1.045, place), textcoords="axes fraction", va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.9, "shrinkA": 1, "shrinkB": 4,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def label_starts(
    axes: Axes, starts: Sequence[tuple[float, float, str, str]], *, gap: float = 1.35
) -> None:
    """Write each line's name left of its start ``(x, y, name, colour)``, as ``label_ends`` does."""
    figure = axes.figure
    size = matplotlib.rcParams["font.size"]
    low, high = axes.get_ylim()
    step = gap * size / (axes.get_window_extent().height / figure.dpi * 72) * (high - low)
    order = sorted(starts, key=lambda start: start[1])
    for (x, y, name, colour), place in zip(
        order, spread([start[1] for start in order], step), strict=True
    ):
        axes.plot([x], [y], "o", color=colour, markersize=6, zorder=5)
        lift = (place - y) / step * gap * size  # points
        thin = {"arrowstyle": "-", "color": colour, "lw": 0.9, "shrinkB": 4, "relpos": (1, 0.5)}
        axes.annotate(
            name, (x, y), xytext=(-8, lift), textcoords="offset points", ha="right", va="center",
            bbox={"boxstyle": "round,pad=0.05", "fc": "white", "ec": "none", "alpha": 0.85},
            arrowprops=thin if abs(lift) > size / 4 else None,
        )  # fmt: skip


def spread(places: Sequence[float], step: float) -> list[float]:
    """Move sorted ``places`` apart to distances of at least ``step``, each as little as may be.

    The least-squares answer: neighbours that collide form a block around their common mean.
    """
    blocks: list[list[float]] = []  # [sum of (place - rank·step), count]
    for rank, place in enumerate(places):
        blocks.append([place - rank * step, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    shifts = [total / count for total, count in blocks for _ in range(int(count))]
    return [shift + rank * step for rank, shift in enumerate(shifts)]


def series_colours(names: Collection[str]) -> dict[str, str]:
    """A colour for each name, in order; ``ValueError`` for more than readers can tell apart."""
    if len(names) > len(SERIES):
        raise ValueError(
            f"{len(names)} lines, but only {len(SERIES)} colours that all readers can tell apart: "
            "draw fewer, or two figures"
        )
    return dict(zip(names, SERIES, strict=False))


def join(*sentences: str) -> str:
    """A caption from sentences, without the empty ones."""
    return " ".join(sentence for sentence in sentences if sentence)


def finite(decibels: np.ndarray) -> np.ndarray:
    """PSNRs to draw: an exact picture (infinity) at 150 dB, where float32 ends."""
    return np.where(np.isposinf(decibels), 150.0, decibels)


def to_array(values: object) -> np.ndarray:
    """Tensors (any device), arrays and lists as a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def to_picture(image: object) -> np.ndarray:
    """A picture ``[c, h, w]`` or ``[1, c, h, w]`` in [0, 1] as ``[h, w, 3]`` for drawing, clamped.

    Raises ``ValueError`` for another shape.
    """
    array = to_array(image)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[0] not in (1, 3):
        raise ValueError(f"expected one picture [c, h, w] with 1 or 3 channels, got {array.shape}")
    array = np.repeat(array, 3, axis=0) if len(array) == 1 else array
    return np.nan_to_num(array.transpose(1, 2, 0)).clip(0, 1)


def show_picture(axes: Axes, picture: np.ndarray, *, edge: str = FAINT, width: float = 1) -> None:
    """Draw ``[h, w, 3]`` with square pixels, without axes, in a frame of colour ``edge``."""
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=edge, linewidth=width)


def blank(axes: Axes) -> None:
    """Hide ticks, grid and spines: the axes become a sheet to draw on."""
    axes.set_axis_off()
