"""Controls: accessible HTML without a kernel, the same bytes on two builds, a live face."""

import html.parser
import re
from types import SimpleNamespace

import pytest

from flcourse import widgets
from flcourse.viz import Figure, house_style, new_figure
from flcourse.widgets import lab, scrubber


@house_style
def draw(value: object = 1, rule: str = "") -> Figure:
    canvas, axes = new_figure(2, 1)
    axes.plot([0, 1], [0, float(len(str(value)))])
    return Figure(canvas, alt=f"alt {value} {rule}", caption=f"caption {value} <b>")


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.inside_label = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("input", "select"):
            self.inside_label = "label" in self.open
        if tag not in ("input", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "every element is closed in order"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_a_scrubber_is_complete_without_kernel_or_script() -> None:
    control = scrubber(draw, [0.1, 1, 10], label="α", start=1, format=lambda a: f"{a:g} units")
    page = Page(control.html())
    assert not page.open and page.inside_label
    (slider,) = page.all("input")
    assert slider["type"] == "range" and slider["max"] == "2" and slider["value"] == "1"
    assert slider["aria-valuetext"] == "1 units"
    assert [image["alt"] for image in page.all("img")] == ["alt 0.1 ", "alt 1 ", "alt 10 "]
    frames = [tag for tag in page.all("div") if tag["class"] == "flc-frame"]
    assert ["hidden" in frame for frame in frames] == [True, False, True]
    assert "http" not in control.html() and "caption 1 &lt;b&gt;" in control.html()


def test_two_builds_give_the_same_bytes() -> None:
    def build() -> str:
        return scrubber(draw, ["a", "bb"], label="x").html()

    assert build() == build() and not re.search(r'\bid="', build())


def test_one_caption_for_all_replaces_the_figures_own() -> None:
    text = scrubber(draw, [1, 2], label="x", caption="for all").html()
    assert "<figcaption>for all</figcaption>" in text and "caption 1" not in text


def test_a_lab_has_a_slider_for_numbers_and_a_list_for_names() -> None:
    control = lab(draw, value=(1, 22, 333), rule=("mean", "median"), start={"rule": "median"})
    page = Page(control.html())
    assert len(page.all("input")) == 1 and len(page.all("select")) == 1
    assert control.strides == (2, 1) and control.start == 1
    assert [image["alt"] for image in page.all("img")][:3] == [
        "alt 1 mean", "alt 1 median", "alt 22 mean"
    ]  # fmt: skip


def test_the_live_face_shows_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    control = lab(draw, value=(1, 22), rule=("mean", "median"))
    box = control.widget()
    slider, listing, picture = box.children[:3]
    slider.value, listing.value = 1, 1
    assert 'alt="alt 22 median"' in picture.value
    assert widgets.VIEW_MIME not in control._repr_mimebundle_()
    monkeypatch.setattr(widgets, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    bundle = control._repr_mimebundle_()
    assert bundle[widgets.VIEW_MIME]["model_id"] and bundle["text/html"] == control.html()


def test_what_makes_no_control_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a label"):
        scrubber(draw, [1, 2], label=" ")
    with pytest.raises(ValueError, match="two or more"):
        scrubber(draw, [1], label="x")
    with pytest.raises(ValueError, match="start=2, but 'x' has positions 0 to 1"):
        scrubber(draw, [1, 2], label="x", start=2)
    with pytest.raises(ValueError, match="the limit is 48"):
        scrubber(draw, range(49), label="x")
    with pytest.raises(TypeError, match="must return a viz Figure, got str"):
        scrubber(str, [1, 2], label="x")
    with pytest.raises(ValueError, match="not among"):
        lab(draw, value=(1, 2), start={"value": 3})
