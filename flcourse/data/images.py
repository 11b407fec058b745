"""Picture files as tensors: the reader's own picture, and the faces of LFW and CelebA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def load_image(path: str | Path, image_size: int = 32) -> Tensor:
    """Your own picture as a batch of one: `[1, 3, image_size, image_size]` float32 in [0, 1].

    Turned upright as its camera noted (EXIF), the largest square in its centre cut out, resized by
    Lanczos; grey and transparent pictures become RGB (transparent parts white). Chapter 03.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no picture, or a damaged one, or `image_size` is below one.
    """
    return torch.from_numpy(read_square(Path(path), image_size)).float().unsqueeze(0) / 255


def read_square(path: Path, image_size: int, side: int | None = None) -> np.ndarray:
    """The centre of a picture file, resized: uint8 `[3, image_size, image_size]`.

    `side` is the width of the square to cut out, in pixels of the file; default (and at most) all.
    """
    if image_size < 1:
        raise ValueError(f"image_size={image_size}: use a positive number of pixels")
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path} (looked in {path.resolve().parent})")
    try:
        with Image.open(path) as file:
            picture = _as_rgb(ImageOps.exif_transpose(file))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no picture that Pillow can read: try a PNG or JPEG") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): save it again as PNG or JPEG"
        ) from error
    width = min(picture.width, picture.height, side or picture.width)
    left, top = (picture.width - width) // 2, (picture.height - width) // 2
    # Not resize(box=…): that lets the pixels around the box bleed into its edge.
    square = picture.crop((left, top, left + width, top + width))
    square = square.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(square).transpose(2, 0, 1).copy()


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits a pixel or more
        values = np.asarray(picture, dtype=np.float64)
        top = 65_535 if values.max() > 255 else 255
        picture = Image.fromarray((values.clip(0, top) * 255 / top).round().astype(np.uint8))
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        picture = Image.alpha_composite(white, layers)
    return picture.convert("RGB")
