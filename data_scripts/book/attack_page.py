"""The attack in the page: what `<!-- flc-attack -->` becomes, and the Lab page's controls.

The HTML stands here, complete and hidden; `assets/attack.js` finds it, shows it and fills it. Only
pages that hold it load the script. Bundled pictures travel inside the page: a canvas may read them
from a folder, too.
"""

from __future__ import annotations

import base64
import io
import json
from html import escape
from pathlib import Path

from PIL import Image

from data_scripts.book.common import CHAPTERS, COPIES
from data_scripts.book.outline import PARTS

SEED = 1  # of the page's weights; tests/browser/test_attack_page.py proves it on every picture
# Five photographs that are free of rights, and the classes that they show.
BUNDLED = ("astronaut", "cat", "coffee", "officer", "retina")
DEFENCES = ("none", "clip", "noise", "prune", "quantise")
COMMENT = "<!-- flc-attack"
CONTROLS = ("flc-scrubber", "flc-lab")


def photographs() -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """The bundled pictures as ``(class name, data address)``, and the names of all classes."""
    from flcourse.data import load_dataset

    photos, _ = load_dataset("photos")
    found = []
    for name in BUNDLED:
        index = photos.labels.tolist().index(photos.classes.index(name))
        pixels = (photos.inputs[index].permute(1, 2, 0) * 255).round().byte().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        data = base64.b64encode(file.getvalue()).decode("ascii")
        found.append((name, f"data:image/png;base64,{data}"))
    return found, photos.classes


def chapter_link(number: str, words: str) -> str:
    """A link to a chapter, or its words alone where it is not yet written."""
    found = sorted(CHAPTERS.glob(f"{number}_*.md"))
    text = f"{escape(words)} (chapter {number})"
    return f'<a href="{found[0].stem}.html">{text}</a>' if found else text


def attack_html(replaces: str = "") -> str:
    """The section that the script fills. ``replaces`` selects the figure it stands in for.

    The script is not deferred: it must have swapped the two before a reader sees either.
    """
    pictures, classes = photographs()
    buttons = "".join(
        f'<button type="button" aria-pressed="false" data-label="{name}">'
        f'<img src="{data}" alt="a photo:" width="32" height="32"> {name}</button>'
        for name, data in pictures
    )
    options = "".join(f"<option>{escape(name)}</option>" for name in classes)
    radios = "".join(
        f'<label><input type="radio" name="flc-attack-defence" value="{name}"'
        f"{' checked' if name == 'none' else ''}> {name}</label>"
        for name in DEFENCES
    )
    return f"""
<section class="flc-attack" aria-label="Attack a picture of your own" data-seed="{SEED}"
 data-replaces="{escape(replaces)}" hidden>
<form autocomplete="off" onsubmit="return false">
<fieldset class="flc-attack-pictures"><legend>A picture on the phone</legend>
{buttons}
<span class="flc-attack-own"><label class="flc-attack-upload">Your own file
<input type="file" class="flc-attack-file" accept="image/*"></label>
<button type="button" class="flc-attack-camera">Camera</button></span>
<label class="flc-attack-class">it shows <select class="flc-attack-label">{options}</select></label>
<video class="flc-attack-video" muted playsinline hidden></video>
</fieldset>
<fieldset class="flc-attack-defences"><legend>What the phone does before it sends</legend>
{radios}
<label class="flc-attack-slider" hidden><span>how much</span>
<input type="range" class="flc-attack-strength" min="0" max="1" value="0">
<output class="flc-attack-strength-text"></output></label>
</fieldset>
</form>
<div class="flc-attack-panels">
{panel("truth", "on the phone", "32 × 32: what the model sees", "The picture, 32 by 32", "private")}
{panel("row", "on the wire", "", "The gradient as grey levels", "server")}
{panel("guess", "at the server", "", "What the server makes of the gradient", "attacker")}
{panel("error", "error", "black: equal, white: off by half", "Where the two differ", "server")}
</div>
<p class="flc-attack-result" role="status" aria-live="polite"></p>
<p class="flc-attack-working"></p>
<details><summary>What this shows, and what it does not</summary>
<p>All of it happens in this browser: the script that came with the page computes the gradient and
attacks what would have been sent. The server's half gets the weights, the message and the public
rules of the defence; the picture itself is used again only to measure the likeness. That is PSNR,
in decibel, and says something only beside what stands in brackets: what a flat picture in the mean
colour gets.</p>
<p><em>Clip</em> shortens the gradient to a length; <em>noise</em> clips it to length 1 and adds
Gaussian noise of standard deviation σ to every number; <em>prune</em> sends the largest numbers
alone; <em>quantise</em> rounds them all to a few bits. Clipping stops nothing here, and noise hides
the picture long before it hides the label; how much noise buys what is the subject of
{chapter_link("12", "training with privacy")}.</p>
<p>The network has random weights, as in a first round; the phone sends the gradient of one picture.
{chapter_link("05", "Other networks")} resist the algebra,
{chapter_link("06", "batches and local steps")} make the search harder, and with
{chapter_link("13", "secure aggregation")} the server sees only a sum: there this attack does not
apply as it is.</p>
</details>
</section>
<script src="../_static/attack.js"></script>
{"" if replaces else "<noscript><p>The attack in the page needs JavaScript.</p></noscript>"}
"""


def panel(name: str, title: str, text: str, alt: str, role: str) -> str:
    """One of the four pictures, with its title above and a line below."""
    return (
        f'<div class="flc-attack-panel flc-attack-{role}"><p class="flc-attack-title">{title}</p>'
        f'<canvas class="flc-attack-{name}" role="img" aria-label="{alt}" width="32" height="32">'
        f'</canvas><p class="flc-attack-{name}-text">{text}</p></div>'
    )


def controls_html() -> str:
    """Every control of every executed chapter, under the chapter's title; see the Lab page."""
    sections = []
    for entry in (entry for part in PARTS for entry in part.chapters):
        found = [html for path in COPIES.glob(f"{entry.number}_*.ipynb") for html in controls(path)]
        if found:
            link = f'<a href="{next(CHAPTERS.glob(f"{entry.number}_*.md")).stem}.html">'
            title = f"{link}{entry.number} · {escape(entry.title)}</a>: {escape(entry.question)}"
            sections.append(f"<h3>{title}</h3>" + "".join(found))
    return "".join(sections)


def controls(path: Path) -> list[str]:
    """The HTML of the controls in one executed notebook, in order."""
    outputs = [
        output.get("data", {}).get("text/html", "")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    pages = ["".join(html) if isinstance(html, list) else html for html in outputs]
    return [html for html in pages if any(f'class="{name}' in html for name in CONTROLS)]
