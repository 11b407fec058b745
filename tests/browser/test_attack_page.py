"""The attack in the page: its figures against Python's, and what a reader can do with it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from data_scripts.book.attack_page import BUNDLED, SEED
from flcourse import attacks, defences
from flcourse.data import load_dataset
from flcourse.metrics import psnr
from flcourse.models import LeNet, mulberry_
from flcourse.vectors import flatten

pytestmark = pytest.mark.browser

INTRO, OWN, OTHER = "chapters/intro", "chapters/03_gradient_leakage", "chapters/glossary"
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / "assets" / "attack.js").read_text(encoding="utf-8")
PHOTOS = load_dataset("photos").train
ENGINE = "const E = flcEngine(), W = E.makeWeights(SEED);".replace("SEED", str(SEED))
# What the page does with one picture, in one call, and what comes back as plain lists.
ATTACK = f"""([picture, label, defence, strength, noise]) => {{ {ENGINE}
  const row = E.gradient(W, Float64Array.from(picture), label);
  const message = E.defend(row, defence, strength, noise);
  const answer = E.attack(W, message.row, message.known, () => {{}});
  return {{ sent: [...message.row], label: answer.label, method: answer.method,
           picture: [...answer.picture], bytes: message.bytes }}; }}"""


@pytest.fixture(scope="module")
def engine(browser):
    """A page with nothing but the script, to call its first three parts."""
    page = browser.new_page()
    page.add_script_tag(content=SCRIPT)
    yield page
    page.close()


@pytest.fixture(scope="module")
def model() -> LeNet:
    """The page's network, in Python."""
    network = LeNet(num_classes=10).double()
    mulberry_(network, SEED)
    return network


def attack(engine, index: int, defence: str = "none", strength: float = 0, noise: int = 7):
    """The page's attack on one photograph: what it answers, and PSNR, floor and label right."""
    picture, label = PHOTOS.inputs[index].double(), int(PHOTOS.labels[index])
    found = engine.evaluate(ATTACK, [picture.flatten().tolist(), label, defence, strength, noise])
    guess = torch.tensor(found["picture"]).reshape(1, 3, 32, 32)
    score = float(psnr(picture[None], guess.clamp(0, 1)))
    flat = picture.mean(dim=(1, 2), keepdim=True).expand_as(picture)
    return found, score, float(psnr(picture[None], flat[None])), found["label"] == label


def test_weights_are_bit_identical(engine, model):
    """The six-line generator draws the same numbers in both languages, for several seeds."""
    for seed in (0, SEED, 2**32 - 1):
        mulberry_(model, seed)
        drawn = engine.evaluate(f"[...flcEngine().makeWeights({seed})]")
        assert drawn == flatten(model).tolist()
        assert -0.5 <= min(drawn) < -0.49 and 0.49 < max(drawn) < 0.5
    mulberry_(model, SEED)


def test_gradient_is_that_of_torch(engine, model):
    """By the weights and by the picture, within rounding of float64, on every photograph."""
    worst = 0.0
    for picture, label in zip(PHOTOS.inputs.double(), PHOTOS.labels, strict=True):
        x = picture[None].clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x), label[None])
        slopes = torch.autograd.grad(loss, [*model.parameters(), x])
        truth = [torch.cat([g.flatten() for g in slopes[:-1]]), slopes[-1].flatten()]
        for wanted, want in zip(("row", "picture"), truth, strict=True):
            got = engine.evaluate(
                f"([x, y]) => {{ {ENGINE} return [...E.gradient(W, Float64Array.from(x), y, "
                f"'{wanted}')]; }}",
                [picture.flatten().tolist(), int(label)],
            )
            worst = max(
                worst, float((torch.tensor(got, dtype=torch.float64) - want).norm() / want.norm())
            )
    assert worst < 1e-9


@pytest.mark.parametrize("index", [0, 1, 2, 5, 6, *range(10, 17)])  # the bundled ones first
def test_algebra_recovers_every_picture(engine, index):
    """At least 50 dB and the right label, from a row that was rounded to float32."""
    found, score, _, label_right = attack(engine, index)
    assert found["method"] == "algebra" and label_right
    assert score >= 50
    assert found["bytes"] == 4 * len(found["sent"])


def test_clipping_is_no_defence(engine):
    """A shorter row has the same direction, and the algebra asks for no more."""
    found, score, _, label_right = attack(engine, 0, "clip", 0.01)
    assert math.isclose(torch.tensor(found["sent"]).norm(), 0.01, rel_tol=1e-5)
    assert score >= 50 and label_right


# Floors of the median over three photographs: 3 dB below what eight gave when the page was made.
SEARCHED = [("noise", 1e-3, 19), ("noise", 1e-2, 12), ("prune", 0.01, 13), ("quantise", 4, 17)]


@pytest.mark.parametrize(("defence", "strength", "least"), SEARCHED, ids=str)
def test_search_goes_on_where_algebra_ends(engine, defence, strength, least):
    """The server notices by itself that the algebra failed, and searches; the label survives."""
    found = [attack(engine, index, defence, strength) for index in (0, 1, 3)]
    assert all(one[0]["method"] == "search" and one[3] for one in found)
    scores = sorted(one[1] for one in found)
    assert least <= scores[1] < 30


def test_picture_dies_before_the_label(engine):
    """At σ = 0.1 the picture is not better than a flat colour in most cases, the label is read."""
    found = [attack(engine, index, "noise", 0.1) for index in range(4)]
    assert sum(score < floor + 1 for _, score, floor, _ in found) >= 3
    assert all(right for *_, right in found)


def test_defences_are_those_of_python(engine, model):
    """Clip, prune and quantise value by value; noise by its mean and its standard deviation."""
    leak = attacks.observe_gradient(model, PHOTOS.inputs[:1].double(), PHOTOS.labels[:1])
    row = leak.row.double()
    call = "([row, s]) => [...flcEngine().NAME(Float64Array.from(row), s, 3)]"
    for name, function, strength in (
        ("clip", defences.clip, 0.5),
        ("prune", defences.prune, 0.01),
        ("quantise", defences.quantise, 4),
    ):
        got = torch.tensor(
            engine.evaluate(call.replace("NAME", name), [row.tolist(), strength]),
            dtype=torch.float64,
        )
        torch.testing.assert_close(got.double(), function(row, strength).double())
    got = torch.tensor(
        engine.evaluate(call.replace("NAME", "addNoise"), [row.tolist(), 0.1]), dtype=torch.float64
    )
    noise = (got - row) / 0.1
    assert abs(float(noise.mean())) < 5 / math.sqrt(len(row))
    assert abs(float(noise.square().mean()) - 1) < 5 * math.sqrt(2 / len(row))
    assert float(noise.abs().max()) < 6


def test_python_reads_the_pages_message(engine, model):
    """What the page sends is a leak like any other: `peel` and `infer_labels` read it, too."""
    found, score, _, _ = attack(engine, 4)
    leak = attacks.observe_gradient(model, PHOTOS.inputs[4:5].double(), PHOTOS.labels[4:5])
    leak = leak.with_row(torch.tensor(found["sent"]).to(leak.row))
    recovery = attacks.peel(model, leak)
    assert int(attacks.infer_labels(model, leak).labels) == found["label"]
    assert recovery.images is not None
    ours = psnr(PHOTOS.inputs[4:5].double(), recovery.images.clamp(0, 1).double())
    assert float(ours) > 50 and score > 50


# --- what a reader does -------------------------------------------------------------------------


def wait(page, *, search: bool = False) -> dict[str, str]:
    """Wait until the server has answered; what the page then says about it."""
    page.wait_for_function(
        "document.querySelector('.flc-attack').getAttribute('aria-busy') === 'false'",
        timeout=60_000,
    )
    return page.evaluate("({...document.querySelector('.flc-attack').dataset})")


@pytest.mark.parametrize(
    "visit",
    [("http", "light"), ("file", "dark"), ("file", "phone")],
    indirect=True,
    ids=lambda look: "-".join(look),
)
def test_page_attacks_by_itself(visit):
    """The first picture is attacked when the page opens, over http and from a folder."""
    asked = []
    visit.page.on("request", lambda request: asked.append(request.url))
    page = visit.go(INTRO)
    told = wait(page)
    assert float(told["psnr"]) > 50 and told["method"] == "algebra"
    text = page.locator(".flc-attack-result").inner_text()
    assert "The server has the picture" in text and "flat colour" in text and "right" in text
    assert page.locator(".flc-attack-result").get_attribute("aria-live") == "polite"
    assert re.search(
        r"15,826 numbers, 63,304 bytes", page.locator(".flc-attack-row-text").inner_text()
    )
    assert page.locator(".cell_output .flc-figure").first.is_hidden(), "two heroes"
    own = (visit.base, "data:", "blob:")
    assert [url for url in asked if not url.startswith(own)] == []
    wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window
    assert visit.problems == []


def test_keyboard_alone(visit):
    """Another picture, a defence and its strength, without a mouse; each answer is announced."""
    page = visit.go(INTRO)
    wait(page)
    said = page.locator(".flc-attack-result").inner_text()
    page.locator(".flc-attack button").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator(".flc-attack button").nth(1).get_attribute("aria-pressed") == "true"
    assert wait(page)["label"] == "1"
    assert page.locator(".flc-attack-result").inner_text() != said
    page.locator(".flc-attack [type=radio]").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    told = wait(page)
    assert told["method"] == "search"
    strength = page.locator(".flc-attack-strength")
    strength.focus()
    page.keyboard.press("End")
    assert "σ" in (strength.get_attribute("aria-valuetext") or "")
    noisy = wait(page)
    assert float(noisy["psnr"]) < float(told["psnr"])
    assert re.search(
        "[Ww]orse than a flat|Hardly more", page.locator(".flc-attack-result").inner_text()
    )


def test_own_file(visit, tmp_path):
    """A wide photograph from a file: its middle square is attacked; a text file is refused."""
    page = visit.go(INTRO)
    wait(page)
    picture = Image.effect_mandelbrot((640, 480), (-2, -1.2, 1, 1.2), 60).convert("RGB")
    picture.save(tmp_path / "mine.jpg")
    page.locator(".flc-attack-file").set_input_files(tmp_path / "mine.jpg")
    page.wait_for_function("!document.querySelector('.flc-attack [aria-pressed=true]')")
    assert float(wait(page)["psnr"]) > 40
    (tmp_path / "notes.jpg").write_text("no picture at all")
    page.locator(".flc-attack-file").set_input_files(tmp_path / "notes.jpg")
    page.wait_for_selector(".flc-attack-wrong")
    words = page.locator(".flc-attack-result").inner_text()
    assert "notes.jpg" in words and "cannot be read" in words and "PNG" in words
    # Chosen again, the same file must be a change; what was refused leaves no mark.
    assert page.locator(".flc-attack-file").input_value() == ""
    page.locator(".flc-attack-file").set_input_files(tmp_path / "mine.jpg")
    page.wait_for_selector(".flc-attack-wrong", state="detached")
    assert float(wait(page)["psnr"]) > 40
    assert visit.problems == []


def test_refusal_outlives_a_running_search(visit, tmp_path):
    """A file refused while the server searches: no older result may stand over the sentence."""
    page = visit.go(INTRO)
    wait(page)
    page.locator(".flc-attack [value=prune]").check()
    assert page.locator(".flc-attack-guess-text").inner_text() == "", "the last figure, too early"
    (tmp_path / "notes.heic").write_text("no picture at all")
    page.locator(".flc-attack-file").set_input_files(tmp_path / "notes.heic")
    page.wait_for_selector(".flc-attack-wrong")
    page.wait_for_timeout(1500)
    assert "notes.heic" in page.locator(".flc-attack-result").inner_text()
    wait(page)


def test_flat_picture_is_called_flat(visit, tmp_path):
    """Against a picture of one colour a flat colour is perfect: the sentence claims no success."""
    page = visit.go(INTRO)
    wait(page)
    Image.new("RGBA", (60, 40)).save(tmp_path / "clear.png")
    page.locator(".flc-attack-file").set_input_files(tmp_path / "clear.png")
    page.wait_for_function("!document.querySelector('.flc-attack [aria-pressed=true]')")
    assert float(wait(page)["psnr"]) > 40
    words = page.locator(".flc-attack-result").inner_text()
    assert "flat colour itself" in words and "a flat colour: over 99 dB" in words


def test_without_workers_the_figure_stays(browser, server):
    """Where no worker can start, the page says so and keeps its figure."""
    page = browser.new_page()
    page.add_init_script("window.Worker = class { constructor() { throw new Error(); } };")
    page.goto(f"{server}/{INTRO}.html")
    page.wait_for_selector(".flc-attack-wrong")
    assert "does not run" in page.locator(".flc-attack-result").inner_text()
    assert page.locator(".cell_output .flc-figure").first.is_visible()
    page.close()


def test_no_camera_says_so(visit):
    """Where there is no camera, a sentence says so and names the way out."""
    page = visit.go(INTRO)
    wait(page)
    page.locator(".flc-attack-camera").click()
    page.wait_for_selector(".flc-attack-wrong")
    assert "Choose a file" in page.locator(".flc-attack-result").inner_text()


def test_camera(browser, server):
    """A picture from a camera (a stand-in that draws) is attacked like any other."""
    context = browser.new_context(permissions=["camera"])
    page = context.new_page()
    page.add_init_script(
        """const canvas = document.createElement('canvas'), brush = canvas.getContext('2d');
        brush.fillStyle = 'teal'; brush.fillRect(0, 0, 300, 150);
        setInterval(() => {  // a stream has a frame only where something was drawn
          brush.fillStyle = 'orange'; brush.fillRect(100, 40, 90, 60);
        }, 50);
        navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(10);"""
    )
    page.goto(f"{server}/{INTRO}.html")
    wait(page)
    page.locator(".flc-attack-camera").click()
    page.wait_for_function("document.querySelector('.flc-attack-video').videoWidth > 0")
    page.wait_for_timeout(300)
    page.locator(".flc-attack-camera").click()
    assert page.locator(".flc-attack-video").is_hidden()
    assert page.locator(".flc-attack [aria-pressed=true]").count() == 0
    assert float(wait(page)["psnr"]) > 30
    page.locator(".flc-attack-camera").click()
    page.wait_for_function("document.querySelector('.flc-attack-video').videoWidth > 0")
    page.wait_for_selector(".flc-attack-video", state="visible")
    page.evaluate(
        "window.tracks = document.querySelector('.flc-attack-video').srcObject.getTracks()"
    )
    page.locator(".flc-attack button").first.click()  # another picture: the camera goes off
    assert page.evaluate("tracks.map((track) => track.readyState)") == ["ended"]
    assert page.locator(".flc-attack-video").is_hidden()
    context.close()


def test_chapter_has_it_and_others_load_nothing(visit, book):
    """Chapter 03 serves the same script; a page without the element neither loads nor starts it."""
    page = visit.go(OWN)
    page.wait_for_timeout(1000)
    assert page.workers == [], "it stands far down the page: nothing runs before the reader is near"
    page.locator(".flc-attack").scroll_into_view_if_needed()
    assert float(wait(page)["psnr"]) > 50
    assert "attack.js" not in (book / f"{OTHER}.html").read_text(encoding="utf-8")


def test_static_figure_stays_without_scripts(browser, server):
    """Without JavaScript the page keeps its figure, and shows no dead controls."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server}/{INTRO}.html")
    assert page.locator(".cell_output .flc-figure").first.is_visible()
    assert page.locator(".flc-attack").is_hidden()
    context.close()


def test_script_is_plain_and_small():
    """No dependency, no address, nothing that a page from a folder may not do; five pictures."""
    assert not re.search(r"\bimport\b|\bfetch\(|https?:|XMLHttpRequest|\bexport\b", SCRIPT)
    assert len(BUNDLED) == 5 and set(BUNDLED) <= set(PHOTOS.classes)
    assert len(SCRIPT.splitlines()) < 570
