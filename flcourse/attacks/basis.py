"""What the attacker searches over: pixels, or the coefficients of a picture in a better basis.

Natural pictures have a falling spectrum: neighbouring pixels are alike. In a basis of cosine waves,
weighted by how strong each wave usually is, the search sees the coarse picture first and is well
conditioned; in pixels it sees noise. Chapters 05 and 06.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

BASES = ("dct", "pixels")

# The usual standard deviation of a natural picture's wave, for a picture of unit size: about
# strength / (1 + f)^1.5 per opponent colour. Rounded from public pictures (CIFAR-10).
_STRENGTH = (0.4, 0.09, 0.04)
_FALL = 1.5
_PIXEL_STD = 0.25
_MEAN = 0.5


@dataclass(frozen=True, eq=False)
class Basis:
    """``x = 0.5 + Aᵀ · (s ∘ u)``: an unknown ``u`` of the picture's own shape ``[..., c, h, w]``.

    ``A`` is orthonormal: a cosine transform of rows and columns, and opponent colours; ``s``
    ``[c, h, w]`` weighs its coefficients. Where ``s`` are a natural picture's standard deviations,
    ``u`` is about N(0, 1). For ``"pixels"``, ``A`` is the identity and ``s`` one number.
    """

    name: str
    std: Tensor
    colours: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The picture's shape, ``(c, h, w)``, or ``(f,)`` for a table."""
        return tuple(self.std.shape)

    def decode(self, unknown: Tensor) -> Tensor:
        """The pictures of some unknowns, ``[..., c, h, w]`` -> the same shape; differentiable."""
        waves = unknown * self.std
        if self.rows is None or self.columns is None:
            return waves + _MEAN
        pictures = self.rows.T @ waves @ self.columns
        return _mix(self.colours, pictures, transpose=True) + _MEAN

    def encode(self, pictures: Tensor) -> Tensor:
        """The unknowns of some pictures: ``decode(encode(x)) = x``."""
        centred = pictures - _MEAN
        if self.rows is not None and self.columns is not None:
            centred = self.rows @ _mix(self.colours, centred) @ self.columns.T
        return centred / self.std

    def to(self, device: torch.device, dtype: torch.dtype) -> Basis:
        """The same basis on another device, in another precision."""

        def move(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(device, dtype)

        return replace(
            self,
            std=self.std.to(device, dtype),
            colours=move(self.colours),
            rows=move(self.rows),
            columns=move(self.columns),
        )


def pixels(shape: tuple[int, ...], std: float = 1.0) -> Basis:
    """Every pixel (or feature of a table) for itself, ``x = 0.5 + std·u``."""
    return Basis("pixels", torch.full(shape, std, dtype=torch.float64))


def dct(shape: tuple[int, ...], std: Tensor | None = None) -> Basis:
    """Cosine waves in opponent colours, each weighted by its usual strength.

    ``std`` ``[c, h, w]``: standard deviations of the coefficients, e.g. of ``learn_spectrum``;
    without it ``natural_spectrum``. Pictures that are not of three channels keep their colours.
    Raises ``ValueError`` for tables, or for a ``std`` of another shape or not positive.
    Source: the 1/f law, Field 1987, "Relations between the statistics of natural images and the
    response properties of cortical cells". Chapter 05.
    """
    channels, height, width = _picture_shape(shape)
    if std is None:
        std = natural_spectrum(shape)
    if tuple(std.shape) != tuple(shape) or not bool((std > 0).all()):
        raise ValueError(
            f"a spectrum of shape {list(std.shape)} does not fit pictures {list(shape)}: "
            "give positive standard deviations [c, h, w]"
        )
    colours = opponent_colours() if channels == 3 else None
    return Basis("dct", std.double(), colours, dct_matrix(height), dct_matrix(width))


def natural_spectrum(shape: tuple[int, ...]) -> Tensor:
    """``s = strength · √(h·w) / (1 + f)^1.5`` per coefficient, ``[c, h, w]``.

    ``f`` is the wave's number of half periods in the picture; the brightness (or any single
    channel) is stronger than the two colour differences. At most what values in [0, 1] can have.
    """
    channels, height, width = _picture_shape(shape)
    fall = (1 + _frequencies(height, width)) ** -_FALL
    strength = _STRENGTH if channels == 3 else (_STRENGTH[0],) * channels
    parts = torch.tensor(strength, dtype=torch.float64)[:, None, None] * fall
    return parts * math.sqrt(height * width)


def learn_spectrum(pictures: Tensor) -> Tensor:
    """The standard deviations of public pictures' coefficients, ``[n, c, h, w] -> [c, h, w]``.

    The root mean square around grey, at least 1 % of the natural spectrum, so that no wave is
    impossible. An attacker learns it from anyone's pictures of the same kind: never from the ones
    attacked. Raises ``ValueError`` unless there are at least 2 pictures, finite.
    """
    if pictures.dim() != 4 or len(pictures) < 2 or not bool(torch.isfinite(pictures).all()):
        raise ValueError(
            f"pictures of shape {list(pictures.shape)}: give at least 2 finite ones, [n, c, h, w]"
        )
    shape = tuple(pictures.shape[1:])
    plain = dct(shape, torch.ones(shape, dtype=torch.float64))
    waves = plain.encode(pictures.detach().double().cpu())
    return waves.square().mean(dim=0).sqrt().maximum(0.01 * natural_spectrum(shape))


def make_basis(
    name: str, shape: tuple[int, ...], spectrum: Tensor | None = None, *, prior: bool = False
) -> Basis:
    """The basis of that name, weighted for a search, or as a ``prior`` under which u is N(0, 1).

    A search without noise weighs waves by the *square root* of their standard deviations: half way
    between white, where fine waves drown the coarse ones, and natural, where the finest would come
    last. Measured over exponents: 0.5 needs the fewest evaluations. Raises ``ValueError`` for an
    unknown name.
    """
    if name == "pixels":
        return pixels(shape, _PIXEL_STD if prior else 1.0)
    if name != "dct":
        raise ValueError(f"basis={name!r} is unknown: use one of {', '.join(BASES)}")
    std = natural_spectrum(shape) if spectrum is None else spectrum
    return dct(shape, std if prior else std.double().sqrt())


def dct_matrix(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) ``[n, n]``: row ``k`` is wave ``k``."""
    k = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi * k[:, None] * (k[None] + 0.5) / size) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


def opponent_colours() -> Tensor:
    """Brightness, red against blue, green against both: orthonormal rows, ``[3, 3]``."""
    rows = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def fourier_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A random picture with the spectrum of natural ones, ``[c, h, w]``, around grey."""
    basis = dct(shape)
    return basis.decode(torch.randn(shape, generator=generator, dtype=torch.float64))


def _mix(colours: Tensor | None, pictures: Tensor, *, transpose: bool = False) -> Tensor:
    if colours is None:
        return pictures
    matrix = colours.T if transpose else colours
    return (matrix @ pictures.flatten(-2)).reshape(pictures.shape)


def _frequencies(height: int, width: int) -> Tensor:
    down = torch.arange(height, dtype=torch.float64)[:, None]
    along = torch.arange(width, dtype=torch.float64)
    return (down.square() + along.square()).sqrt()


def _picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(
            f"shape={tuple(shape)}: cosine waves need pictures (c, h, w); use basis='pixels'"
        )
    return shape
