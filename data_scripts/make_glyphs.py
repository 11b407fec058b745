"""Draw the glyph atlas: 62 characters in 21 typefaces, 64 x 64 pixels each.

    python data_scripts/make_glyphs.py [--sheet contact_sheet.png]

The typefaces are the text fonts that matplotlib bundles (DejaVu, STIX, Computer Modern); its symbol
fonts have no digits or letters and are left out. The atlas is kept in the package, so that the
`glyphs` data set depends neither on the matplotlib version nor on FreeType.

Every typeface is scaled to the same digit height and set on the same baseline, so that the case
of a letter (o, O) can still be told. Grey values are kept in 16 steps, which halves the file and
cannot be seen after the warp.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

TYPEFACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SIZE = 64
DIGIT_HEIGHT = 38
BASELINE = 50  # centres the digits; leaves 14 pixels for the descenders of g, j, p, q, y
ASSET = Path(__file__).parents[1] / "flcourse" / "assets" / "glyphs.npz"


def font_of_height(path: Path, height: int) -> ImageFont.FreeTypeFont:
    """The font at the largest size whose digit 0 is at most `height` pixels tall."""
    fitting = ImageFont.truetype(path, 8)
    for points in range(8, 128):
        font = ImageFont.truetype(path, points)
        _, top, _, bottom = font.getbbox("0", anchor="ls")
        if bottom - top > height:
            break
        fitting = font
    return fitting


def draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """One character, white on black, its ink centred from left to right: uint8 [64, 64]."""
    left, top, right, bottom = font.getbbox(character, anchor="ls")
    if right - left > SIZE or BASELINE + top < 0 or BASELINE + bottom > SIZE:
        raise ValueError(f"{character!r} in {font.getname()} does not fit: lower DIGIT_HEIGHT")
    picture = Image.new("L", (SIZE, SIZE), 0)
    x = (SIZE - (right - left)) // 2 - left
    ImageDraw.Draw(picture).text((x, BASELINE), character, fill=255, font=font, anchor="ls")
    return np.asarray(picture)


def quantise(pictures: np.ndarray) -> np.ndarray:
    """Grey values 0-255 to steps 0-15."""
    return np.round(pictures / 17).astype(np.uint8)


def make_atlas() -> np.ndarray:
    """Steps of grey, uint8 [typeface, character, 64, 64]."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [font_of_height(folder / f"{name}.ttf", DIGIT_HEIGHT) for name in TYPEFACES]
    return quantise(np.array([[draw(font, c) for c in CHARACTERS] for font in fonts]))


def save_sheet(atlas: np.ndarray, path: Path) -> None:
    """All glyphs in one picture, one typeface a row, to be looked at."""
    rows = np.concatenate(list(np.concatenate(list(atlas.transpose(1, 0, 2, 3)), axis=2)), axis=0)
    Image.fromarray(rows * 17).resize((rows.shape[1] // 2, rows.shape[0] // 2)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet here")
    arguments = parser.parse_args()
    atlas = make_atlas()
    pairs = (atlas[..., ::2] << 4) | atlas[..., 1::2]  # two pixels a byte
    np.savez_compressed(
        ASSET, atlas=pairs, typefaces=np.array(TYPEFACES), characters=np.array(CHARACTERS)
    )
    print(f"{ASSET.name}: {atlas.shape}, {ASSET.stat().st_size / 1000:.0f} kB")
    if arguments.sheet:
        save_sheet(atlas, arguments.sheet)


if __name__ == "__main__":
    main()
