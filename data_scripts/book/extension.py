"""The course's own part of the book: front strip, call-out cards, map, attack, tables.

Chapters use only markup that every notebook viewer renders, so what makes them a book happens
here: block quotes with a bold lead word become cards, a strip with what a reader wants to know
first is put below a chapter's title, `<!-- flc-map -->` becomes the map of the course, and the
plain pages have directives for the tables made from code and from the last run.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from data_scripts.book import tables
from data_scripts.book.address import MARK, colab_link
from data_scripts.book.attack_page import COMMENT, attack_html, controls_html
from data_scripts.book.common import (
    CHAPTERS,
    RECORDS,
    address,
    front_matter,
    is_chapter,
    minutes_to_read,
    record,
)
from data_scripts.book.outline import PARTS

CARDS = frozenset("threat-model predict formula pitfall result try-it ledger running-case".split())
COVER = (
    '<figure class="flc-cover"><img src="../_static/cover.png" width="1400" height="420" alt="'
    "One of five clients holds a photo. On its way out the photo turns into a stream of grey "
    'numbers, which ends in a dark frame with a question mark."></figure>'
)
# What the theme and its extensions put into pages, and what these pages have in its place.
MENDED = (
    # Icon fonts asked for a first time in a way that browsers refuse to a page in a folder.
    (r'<link rel="preload" as="font"[^>]*>', ""),
    # Live code from another host: off, but its settings are written twice, which is an error.
    (r"<script>const THEBE_JS_URL.*?</script>", ""),
    (r"<(?:script|link)[^>]*sphinx-thebe[^>]*>(?:</script>)?", ""),
    (r'<script type="text/x-thebe-config">.*?</script>', ""),
    (r"<script>kernelName = .*?</script>", ""),
    # The bibliography says that it is a list, and its entries say that they are something else.
    (r'<div role="list" class="citation-list"', '<div class="citation-list"'),
    # What scrolls sideways on a phone must be reachable by keyboard, and so must have a name.
    (
        r'<div class="pst-scrollable-table-container"',
        '<div class="pst-scrollable-table-container" tabindex="0" role="region" aria-label="Table"',
    ),
    (r'<figure class="flc-figure flc-table"', '<figure class="flc-figure flc-table" tabindex="0"'),
)
DIFFICULTY = {1: "first steps", 2: "some mathematics", 3: "demanding"}


def slug(words: str) -> str:
    """A card's name from its lead words: `Try it.` gives `try-it`."""
    return re.sub(r"[^a-z]+", "-", words.lower()).strip("-")


def drop_dash(paragraph: nodes.paragraph, place: int) -> None:
    """Take the dash away that joins a card's lead to its text: on a card it is a heading."""
    if place < len(paragraph) and isinstance(paragraph[place], nodes.Text):
        paragraph[place] = nodes.Text(re.sub(r"^\s*[—–:]\s*", "", str(paragraph[place])))
    for text in list(paragraph.findall(nodes.Text)):
        if text.strip() and paragraph.index(top_of(text, paragraph)) >= place:
            if isinstance(text.parent, (nodes.math, nodes.literal)):
                return  # a formula's or a name's first letter is not a sentence's
            text.parent.replace(text, nodes.Text(text[:1].upper() + text[1:]))
            return


def top_of(node: nodes.Node, ancestor: nodes.Element) -> nodes.Node:
    """The child of `ancestor` that holds `node`."""
    while node.parent is not ancestor:
        node = node.parent
    return node


def style_cards(app: Sphinx, doctree: nodes.document) -> None:
    """Give every block quote that starts with a known bold lead word the classes of its card."""
    for quote in doctree.findall(nodes.block_quote):
        paragraph = quote.children[0] if quote.children else None
        if not isinstance(paragraph, nodes.paragraph):
            continue
        lead = next((child for child in paragraph.children if child.astext().strip()), None)
        if isinstance(lead, nodes.strong) and slug(lead.astext()) in CARDS:
            quote["classes"] += ["flc-card", f"flc-card-{slug(lead.astext())}"]
            lead["classes"].append("flc-lead")
            place = paragraph.index(lead) + 1
            drop_dash(paragraph, place)
            words = "".join(child.astext() for child in paragraph.children[place:])
            if words.strip().lower().startswith("nobody attacks"):
                quote["classes"].append("flc-card-calm")  # vermilion is for attackers alone


def name_install_cell(app: Sphinx, doctree: nodes.document) -> None:
    """Say on the folded install cell what it is, so that readers of the page can pass it by."""
    for node in doctree.findall(nodes.container):
        if node.get("nb_element") != "cell_code" or not node.get("hide_mode"):
            continue
        if any(MARK in block.astext() for block in node.findall(nodes.literal_block)):
            node["prompt_show"] = "Install the course (needed in Colab only)"


def fact(label: str, value: str, kind: str = "") -> str:
    """One fact of the strip."""
    extra = f" flc-fact-{kind}" if kind else ""
    return f'<li class="flc-fact{extra}"><span>{escape(label)}</span> {value}</li>'


def strip_html(name: str) -> str:
    """The strip below a chapter's title, as HTML."""
    source = CHAPTERS / f"{name}.md"
    about, run = front_matter(source).get("flcourse", {}), record(name)
    level = int(about.get("difficulty", 1))
    dots = f'<span class="flc-dots" aria-hidden="true">{"●" * level}{"○" * (3 - level)}</span> '
    minutes = minutes_to_read(source.read_text(encoding="utf-8"))
    facts = [fact("Read", f"{minutes} min")]
    if run:
        seconds = max(5, math.ceil(run["seconds"] / 5) * 5)
        profile = "laptop" if run["provenance"]["device"] == "cpu" else "GPU"
        facts.append(fact("Run", f"≤ {seconds} s, {profile}"))
    facts.append(fact("Level", dots + DIFFICULTY[level]))
    if "data" in about:
        facts.append(fact("Data", f"<code>{escape(str(about['data']))}</code>"))
    if run.get("claims"):
        number = len(run["claims"])
        words = "claim" if number == 1 else "claims"
        link = f'<a href="status.html#{slug_id(name)}">{number} {words}</a>'
        facts.append(fact("Proof", link, "claims"))
    links = [f'<a class="flc-button" href="{name}.ipynb" download>Notebook</a>']
    if address():
        target = escape(colab_link(address(), f"chapters/{name}.ipynb"))
        links.insert(0, f'<a class="flc-button flc-button-main" href="{target}">Open in Colab</a>')
    return (
        '<div class="flc-strip"><ul>' + "".join(facts) + "</ul>"
        '<div class="flc-strip-links">' + " ".join(links) + "</div></div>"
    )


def slug_id(name: str) -> str:
    """The anchor of a chapter's claims on the status page."""
    return "claims-" + name.replace("_", "-")


def map_html() -> str:
    """The map of the course: written chapters are links, the others grey."""
    parts = []
    for part in PARTS:
        entries = []
        for entry in part.chapters:
            found = sorted(CHAPTERS.glob(f"{entry.number}_*.md"))
            label = (
                f'<span class="flc-map-number">{entry.number}</span>'
                f'<span class="flc-map-title">{escape(entry.title)}</span>'
                f'<span class="flc-map-question">{escape(entry.question)}</span>'
            )
            if found:
                entries.append(f'<li><a href="{found[0].stem}.html">{label}</a></li>')
            else:
                soon = '<span class="flc-map-soon">(not yet written)</span>'
                entries.append(f'<li class="flc-map-grey"><div>{label}{soon}</div></li>')
        parts.append(
            f'<section class="flc-map-part flc-map-{part.colour}">'
            f'<p class="flc-map-heading">{escape(part.title)}</p>'
            f"<ol>{''.join(entries)}</ol></section>"
        )
    legend = '<p class="flc-map-legend">Chapters in grey are not yet written.</p>'
    if not any("flc-map-grey" in part for part in parts):
        legend = ""
    return f'<nav class="flc-map" aria-label="Map of the course">{"".join(parts)}{legend}</nav>'


def raw(html: str) -> nodes.raw:
    """HTML as a docutils node."""
    return nodes.raw("", html, format="html")


def add_generated_parts(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the strip below a chapter's title, and the map where its comment stands."""
    path = Path(app.srcdir) / f"{docname}.md"
    if is_chapter(path):
        title = next(doctree.findall(nodes.title), None)
        if title is not None:
            section = title.parent
            section.insert(section.index(title) + 1, raw(strip_html(path.stem)))
    if docname == app.config.root_doc:
        doctree.insert(0, raw(COVER))
    for node in list(doctree.findall(nodes.raw)):
        comment = node.astext().strip()
        if comment == "<!-- flc-map -->":
            node.parent.replace(node, raw(map_html()))
        elif comment == "<!-- flc-controls -->":
            node.parent.replace(node, raw(controls_html()))
        elif comment.startswith(COMMENT):
            # `<!-- flc-attack for SELECTOR -->` also names the figure that it stands in for.
            replaces = comment.removeprefix(COMMENT).removesuffix("-->").strip()
            node.parent.replace(node, raw(attack_html(replaces.removeprefix("for "))))


class Generated(SphinxDirective):
    """A table made at build time: ```` ```{flc-table} claims ```` and its kin (see tables.py)."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the table's Markdown where the directive stands."""
        name = self.arguments[0]
        if name not in tables.TABLES:
            raise self.error(f"no table {name!r}; there are: {', '.join(sorted(tables.TABLES))}")
        for path in RECORDS.glob("*.json"):
            self.env.note_dependency(str(path))
        holder = nodes.container(classes=["flc-generated", f"flc-generated-{name}"])
        self.content.data = tables.TABLES[name]().splitlines()
        self.content.items = [(f"table {name}", line) for line in range(len(self.content.data))]
        self.state.nested_parse(self.content, 0, holder, match_titles=1)
        return holder.children


def finish_pages(app: Sphinx, error: Exception | None) -> None:
    """Lay the notebooks beside their pages, and take out what does not work without a network."""
    if error is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    for source in sorted(CHAPTERS.glob("*.ipynb")):
        shutil.copy(source, folder / "chapters" / source.name)
    for page in folder.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for pattern, replacement in MENDED:
            text = re.sub(pattern, replacement, text, flags=re.DOTALL)
        page.write_text(text, encoding="utf-8")
    lay_out_frames(folder / "chapters" / "lab.html")
    options = folder / "_static" / "documentation_options.js"
    text = options.read_text(encoding="utf-8")
    # A browser does not let a page in a folder read the pages that it found.
    summary = "SHOW_SEARCH_SUMMARY: location.protocol !== 'file:'"
    options.write_text(text.replace("SHOW_SEARCH_SUMMARY: true", summary), encoding="utf-8")


def lay_out_frames(page: Path) -> None:
    """Make files of the pictures of a page's controls: the browser loads those that are shown."""
    if not page.is_file():
        return
    images = page.parents[1] / "_images"
    images.mkdir(exist_ok=True)

    def lay(found: re.Match[str]) -> str:
        data = base64.b64decode(found[2])
        name = f"control-{hashlib.sha256(data).hexdigest()[:16]}.png"
        (images / name).write_bytes(data)
        return f'{found[1]}loading="lazy" src="../_images/{name}"'

    pattern = r'(<img alt="[^"]+" [^>]*?)src="data:image/png;base64,([^"]+)"'
    text = re.sub(pattern, lay, page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")


def set_site(app: Sphinx, config: Any) -> None:
    """Take the site's address from the environment, where the book is published."""
    config.html_baseurl = os.environ.get("FLCOURSE_SITE", "")


def add_social_card(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Name the social card in a published page; its address must be absolute."""
    base = app.config.html_baseurl
    if base:
        card = escape(base.rstrip("/") + "/_static/social.png")
        tags = f'<meta property="og:image" content="{card}">'
        tags += '<meta name="twitter:card" content="summary_large_image">'
        context["metatags"] = context.get("metatags", "") + tags


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect the parts to Sphinx."""
    app.add_directive("flc-table", Generated)
    app.connect("config-inited", set_site)
    app.connect("html-page-context", add_social_card)
    app.connect("doctree-read", style_cards)
    app.connect("doctree-read", name_install_cell)
    app.connect("doctree-resolved", add_generated_parts)
    app.connect("build-finished", finish_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
