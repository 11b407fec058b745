"""The book as a reader meets it: complete, quiet, accessible, at every width, without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"]] + [entry["file"] for part in TOC["parts"] for entry in part["chapters"]]
LOOKS = [("http", "light"), ("http", "dark"), ("http", "phone")]
WITH_CONTROL = [
    page
    for page in PAGES
    if (BOOK / f"{page}.html").is_file()
    and 'class="flc-frames"' in (BOOK / f"{page}.html").read_text(encoding="utf-8")
]

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("page", [*PAGES, "search", "genindex"])
@pytest.mark.parametrize("visit", [("http", "light"), ("file", "light")], indirect=True, ids=str)
def test_page_is_complete_and_quiet(visit, page):
    """No error in the console, no missing file, nothing asked of another host."""
    opened = visit.go(page)
    broken = opened.evaluate(
        "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    )
    assert visit.problems == []
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("visit", LOOKS, indirect=True, ids=lambda look: look[1])
def test_page_is_accessible_and_fits(visit, page):
    """axe finds nothing serious; no page is wider than its window; colours follow the mode."""
    opened = visit.go(page)
    wide, window = opened.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window, f"{wide - window} pixels wider than the window"
    mode = opened.evaluate("document.documentElement.dataset.theme")
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in re.findall(r"\d+", ground)[:3]) > 384
    assert light == (mode == "light"), f"{mode} mode, but the ground is {ground}"
    found = Axe().run(opened).response["violations"]
    serious = [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node['failureSummary'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"][:5]
    ]
    assert serious == [], "\n".join(serious)


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_has_alt_text(page):
    """No picture without words, save those that are marked as decoration."""
    text = (BOOK / f"{page}.html").read_text(encoding="utf-8")
    article = text.split("<article", 1)[1].split("</article>", 1)[0]
    bare = [
        tag[:90] for tag in re.findall(r"<img[^>]*>", article) if not re.search(r'alt="[^"]', tag)
    ]
    assert bare == []


@pytest.mark.parametrize("page", PAGES)
def test_no_dead_progress_bar(page):
    """A bar that once moved says nothing on a page."""
    text = (BOOK / f"{page}.html").read_text(encoding="utf-8")
    assert not re.search(r"it/s\]|\b0%\|", text), "run the chapters with FLCOURSE_PROGRESS=0"


def test_install_cell_says_what_it_is(book):
    """The folded first cell of a chapter can be passed by without opening it."""
    for page in sorted((book / "chapters").glob("[0-9][0-9]_*.html")):
        assert "Install the course (needed in Colab only)" in page.read_text(encoding="utf-8")


def shown(page) -> str:
    """The source of the picture that the page's first control shows now."""
    return page.evaluate(
        """() => [...document.querySelector('figure input[type=range]').closest('figure')
                .querySelectorAll('img')].filter(i => i.offsetParent)
                .map(i => i.src).join('|')"""
    )


@pytest.mark.skipif(not WITH_CONTROL, reason="no page has a control, or the book is not built")
@pytest.mark.parametrize("page", WITH_CONTROL)
@pytest.mark.parametrize("visit", [("http", "light"), ("file", "phone")], indirect=True, ids=str)
def test_control_moves_the_picture(visit, page):
    """By keyboard and by mouse, and its text says where it stands."""
    opened = visit.go(page)
    control = opened.locator("figure input[type=range]").first
    control.scroll_into_view_if_needed()
    low, high = (int(control.get_attribute(name)) for name in ("min", "max"))
    output = opened.locator("figure:has(input[type=range]) output").first
    control.focus()
    opened.keyboard.press("Home")
    first, words = shown(opened), output.inner_text()
    assert first.count("|") == 0, "one picture at a time"
    opened.keyboard.press("ArrowRight")
    assert shown(opened) != first, "an arrow key does not move the picture"
    assert output.inner_text() != words, "the control does not say where it stands"
    box = control.bounding_box()
    opened.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert int(control.input_value()) == high > low
    last = shown(opened)
    assert last != first, "the mouse does not move the picture"
    opened.mouse.move(box["x"] + box["width"] - 8, box["y"] + box["height"] / 2)
    opened.mouse.down()
    opened.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2, steps=4)
    opened.mouse.up()
    assert shown(opened) == first, "dragging does not move the picture"


@pytest.mark.parametrize("visit", [("http", "light"), ("file", "light")], indirect=True, ids=str)
def test_search_finds(visit):
    """The search page finds a word of the course."""
    opened = visit.go("search?q=client")
    opened.wait_for_selector("#search-results li a", timeout=10_000)
    assert opened.locator("#search-results li").count() > 0
    assert visit.problems == []


def test_mode_can_be_switched(visit):
    """The button changes between light and dark."""
    opened = visit.go(PAGES[0])
    seen = set()
    for _ in range(3):
        opened.locator("button.theme-switch-button").first.click()
        seen.add(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2


class Links(HTMLParser):
    """Collects link targets and ids of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag points to and how it may be pointed at."""
        values = dict(attrs)
        self.targets += [str(values[key]) for key in ("href", "src") if values.get(key)]
        self.ids |= {str(values[key]) for key in ("id", "name") if values.get(key)}


def read(path: Path) -> Links:
    """The links of a page."""
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


def test_links_within_the_book_lead_somewhere(book):
    """Every relative link has its file, and its anchor where it names one."""
    pages = {path: read(path) for path in book.rglob("*.html") if "_static" not in path.parts}
    lost = []
    for path, links in pages.items():
        for target in set(links.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or target in ("#", "#!"):
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not goal.exists():
                lost.append(f"{path.name}: {target}")
            elif parts.fragment and goal in pages and parts.fragment not in pages[goal].ids:
                lost.append(f"{path.name}: {target} (no such anchor)")
    assert sorted(lost) == []


def test_no_path_of_this_machine_and_no_other_host_in_the_pages(book):
    """Two people's builds give the same pages; a page loads nothing from elsewhere."""
    told = []
    for path in book.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        told += [f"{path.name}: {ROOT}" for _ in re.findall(re.escape(str(ROOT)), text)]
        told += [
            f"{path.name}: {tag[:120]}"
            for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", text)
            if re.search(r'(?:src|href)="(?:https?:)?//', tag) and 'rel="canonical"' not in tag
        ]
    assert told == []
