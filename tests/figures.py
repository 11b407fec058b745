"""What holds for every figure of the course."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from PIL import Image

from flcourse.viz import Figure


def assert_speaks_for_itself(make: Callable[[], Figure], *, words: bool = True) -> None:
    """A figure is one ``<figure>`` with nothing from elsewhere, sharp on a dense screen, no wider
    than a page, and the same bytes again. With ``words``, alt text and caption stand alone."""
    figure = make()
    page = figure._repr_mimebundle_()["text/html"]
    assert re.fullmatch(r'<figure class="flc-figure".*</figure>', page, re.DOTALL)
    assert "http" not in page and len(page) < 250_000
    if words:
        assert len(figure.alt) > 20 and len(figure.caption) > 40, "a caption is understood alone"
        assert "nan" not in figure.caption
    picture = Image.open(io.BytesIO(figure.png))
    assert picture.width == pytest.approx(2 * figure.width, abs=2), "twice the page's pixels"
    assert figure.width <= 720 and not picture.info.keys() - {"dpi", "transparency"}
    assert page == make()._repr_mimebundle_()["text/html"], "the same data give the same bytes"
