"""Draw the cover of the intro page and the social card (assets/cover.png, assets/social.png).

    pip install brotli      # fontTools needs it to read the committed .woff2
    python -m data_scripts.book.cover

The picture is the course in one line: a photo leaves its client as "only numbers", and comes
ends in the hands of an attacker, as a question: the intro gives the answer right below its cover.
The card for links shows it already: the intro's leak, computed from the gradient of one linear
layer. Only the stream between is an artist's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from torch import Tensor

from data_scripts.book.common import ROOT
from data_scripts.make_hero import leak

INK, PAPER, MUTED = "#10161d", "#fcfbf8", "#a8b3c1"
CLIENT, SERVER, ATTACKER = "#0072B2", "#6B7280", "#D55E00"
SIDE = 3.0  # of a photo, in units where the cover is 14 x 4.2


def add_fonts(folder: Path) -> None:
    """Make the committed fonts known to matplotlib, which reads TrueType only."""
    for source in sorted((ROOT / "assets" / "fonts").glob("*.woff2")):
        font = TTFont(source)
        font.flavor = None
        target = folder / f"{source.stem}.ttf"
        font.save(target)
        font_manager.fontManager.addfont(target)


def pixels(left: float, bottom: float) -> np.ndarray:
    """Lower left corners of a photo's 32 x 32 pixels, row by row from the top: [1024, 2]."""
    step = SIDE / 32
    row, column = np.divmod(np.arange(32 * 32), 32)
    return np.stack([left + column * step, bottom + SIDE - (row + 1) * step], axis=1)


def stream(axes: Axes, colours: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
    """Draw the photo at both ends, and between them its pixels pressed into a thin wire."""
    rng = np.random.default_rng(3)
    step = SIDE / 32
    grey = np.array([0.42, 0.45, 0.50])
    squares, shades = [], []
    for _ in range(3):
        time = rng.beta(1.1, 1.1, size=len(start)) * 0.94 + 0.03
        pinch = np.sin(np.pi * time) ** 0.9
        place = start + (end - start) * time[:, None]
        middle = start[:, 1].mean()
        place[:, 1] = middle + (place[:, 1] - middle) * (1 - 0.93 * pinch)
        place[:, 1] += rng.normal(scale=0.05, size=len(start)) * pinch
        blend = np.clip(1.05 * pinch, 0, 0.9)[:, None]
        shade = colours * (1 - blend) + grey * blend
        size = step * (0.95 - 0.45 * pinch)
        left, right = start[:, 0].max() + step + 0.16, end[:, 0].min() - 0.16  # clear of the frames
        visible = (place[:, 0] > left) & (place[:, 0] + size < right)
        squares += [
            Rectangle((x, y), s, s) for (x, y), s in zip(place[visible], size[visible], strict=True)
        ]
        shades.append(shade[visible])
    axes.add_collection(PatchCollection(squares, facecolors=np.concatenate(shades), linewidths=0))


def photo(axes: Axes, colours: np.ndarray | None, corners: np.ndarray, frame: str) -> None:
    """Draw one photo pixel by pixel in a coloured frame; without colours, a question mark."""
    step = SIDE / 32
    centre = corners.mean(axis=0) + step / 2
    if colours is None:
        look = {"family": "IBM Plex Serif SemiBold", "weight": 600, "color": frame}
        axes.text(*centre, "?", fontsize=125, ha="center", va="center", **look)
        colours = np.broadcast_to(matplotlib.colors.to_rgb(INK), (len(corners), 3))
    squares = [Rectangle(tuple(corner), step, step) for corner in corners]
    axes.add_collection(
        PatchCollection(squares, facecolors=colours, edgecolors=colours, linewidths=0.3)
    )
    corner = (corners[:, 0].min() - 0.1, corners[:, 1].min() - 0.1)
    box = FancyBboxPatch(corner, SIDE + 0.2, SIDE + 0.2, boxstyle="round,pad=0,rounding_size=0.12")
    box.set(facecolor="none", edgecolor=frame, linewidth=3.5)
    axes.add_patch(box)


def colours_of(picture: Tensor) -> np.ndarray:
    """A picture [1, 3, 32, 32] as one colour a pixel, row by row: [1024, 3] in [0, 1]."""
    return picture[0].permute(1, 2, 0).reshape(-1, 3).clamp(0, 1).numpy()


def draw(axes: Axes, shift: float = 0.0, *, answer: bool) -> None:
    """The whole scene on axes of 14 units across, with what the attacker got where told to."""
    private, _, recovered = leak()
    colours = colours_of(private)
    start, end = pixels(1.75, 0.6 + shift), pixels(10.35, 0.6 + shift)
    middle = 0.6 + SIDE / 2 + shift
    for height in (-1.3, -0.65, 0.65, 1.3):  # the other four clients, left in peace today
        axes.add_patch(Circle((0.75, middle + height), 0.17, color=CLIENT))
    axes.add_patch(Circle((0.75, middle), 0.17, facecolor=INK, edgecolor=CLIENT, linewidth=3))
    axes.plot([0.95, 1.62], [middle, middle], color=CLIENT, linewidth=2)
    stream(axes, colours, start, end)
    photo(axes, colours, start, CLIENT)
    photo(axes, colours_of(recovered) if answer else None, end, ATTACKER)


def canvas(width: float, height: float) -> tuple[plt.Figure, Axes]:
    """A dark sheet in inches, with axes that cover it."""
    figure = plt.figure(figsize=(width, height), facecolor=INK)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def save(figure: plt.Figure, name: str, dpi: int) -> None:
    """Write a PNG without a date or a version in it."""
    path = ROOT / "assets" / name
    figure.savefig(path, dpi=dpi, facecolor=INK, metadata={"Software": None})
    plt.close(figure)
    print(path.relative_to(ROOT), path.stat().st_size, "bytes")


def cover() -> None:
    """The wide picture above the intro's title: 1400 x 420."""
    figure, axes = canvas(14, 4.2)
    axes.set(xlim=(0, 14), ylim=(0, 4.2))
    draw(axes, answer=False)
    save(figure, "cover.png", 100)


def social() -> None:
    """The card that a link to the course shows: 1200 x 630, with the title."""
    figure, axes = canvas(12, 6.3)
    axes.set(xlim=(0, 14), ylim=(0, 7.35))
    draw(axes, shift=0.25, answer=True)
    title = {"family": "IBM Plex Serif SemiBold", "weight": 600, "color": PAPER}
    axes.text(0.6, 6.45, "Federated Learning,", fontsize=41, va="center", **title)
    axes.text(0.6, 5.5, "Attacked and Defended", fontsize=41, va="center", **title)
    label = {"family": "IBM Plex Mono", "color": MUTED, "fontsize": 15, "va": "center"}
    axes.text(13.45, 5.5, "a course you run", ha="right", **label)
    save(figure, "social.png", 100)


def main() -> None:
    """Draw both."""
    with tempfile.TemporaryDirectory() as folder:
        add_fonts(Path(folder))
        cover()
        social()


if __name__ == "__main__":
    main()
