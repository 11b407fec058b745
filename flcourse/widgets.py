"""Controls with two faces: a live widget where a kernel runs, plain HTML where there is none.

Every position is drawn once, when the control is made. The HTML face has a labelled input and one
picture a position; it needs no kernel, no network and no identifiers, so several controls may stand
on a page and two builds give the same bytes.
"""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from IPython import get_ipython

from flcourse.viz.base import Figure, HtmlFigure, caption_html

VIEW_MIME = "application/vnd.jupyter.widget-view+json"
# Every position is a picture in the page, about 40 kB each.
MAX_POSITIONS = 48

# Runs on each input: adds up the positions of the figure's inputs, shows that picture, hides the
# others. An attribute works wherever HTML is injected, even where <script> elements are not run.
_ON_INPUT = (
    "var f=this.closest('figure'),n=0;"
    "f.querySelectorAll('[data-stride]').forEach(function(c){"
    "n+=c.dataset.stride*c.value;"
    "if(c.type=='range'){var t=JSON.parse(c.dataset.texts)[c.value];"
    "c.setAttribute('aria-valuetext',t);"
    "c.closest('.flc-control').querySelector('output').value=t}});"
    "f.querySelectorAll('.flc-frame').forEach(function(p,i){p.hidden=i!=n})"
)


@dataclass(frozen=True)
class Choice:
    """One input of a control: its label, the texts of its positions, and where it starts."""

    label: str
    texts: tuple[str, ...]
    start: int
    ordered: bool  # numbers get a slider, names a list

    def html(self, stride: int) -> str:
        """The input within its ``<label>``; ``stride`` is how many pictures one position skips."""
        shared = f'data-stride="{stride}" oninput="{html.escape(_ON_INPUT)}" autocomplete="off"'
        inner = self._range(shared) if self.ordered else self._list(shared)
        style = "display:flex;flex-wrap:wrap;align-items:center;gap:.3em .8em;margin:0 0 .6em"
        return f'<div class="flc-control" style="{style}">{inner}</div>'

    def _range(self, shared: str) -> str:
        texts = html.escape(json.dumps(self.texts, ensure_ascii=False))
        now, wide = html.escape(self.texts[self.start]), max(map(len, self.texts)) + 1
        style = "display:flex;flex:1 1 16em;align-items:center;gap:.8em"
        return (
            f'<label style="{style}"><span>{html.escape(self.label)}</span> '
            f'<input type="range" min="0" max="{len(self.texts) - 1}" step="1" '
            f'value="{self.start}" aria-valuetext="{now}" data-texts="{texts}" {shared} '
            'style="flex:1 1 8em;min-width:6em"></label>'
            f'<output aria-live="off" style="min-width:{wide}ch">{now}</output>'
        )

    def _list(self, shared: str) -> str:
        options = "".join(
            f'<option value="{n}"{" selected" if n == self.start else ""}>{html.escape(t)}</option>'
            for n, t in enumerate(self.texts)
        )
        return f"<label>{html.escape(self.label)} <select {shared}>{options}</select></label>"

    def widget(self) -> Any:
        """The same input as a live ipywidgets control; its value is the position."""
        import ipywidgets

        options = [(text, place) for place, text in enumerate(self.texts)]
        kind = ipywidgets.SelectionSlider if self.ordered else ipywidgets.Dropdown
        look = {"style": {"description_width": "initial"}, "layout": {"width": "95%"}}
        return kind(options=options, value=self.start, description=self.label, **look)


class Control:
    """Inputs above pictures, one picture for each combination; made by ``scrubber`` and ``lab``."""

    def __init__(
        self, kind: str, choices: Sequence[Choice], figures: Sequence[Any], caption: str
    ) -> None:
        self.kind, self.choices, self.figures = kind, tuple(choices), tuple(figures)
        self.caption = caption

    @property
    def strides(self) -> tuple[int, ...]:
        """How many pictures one position of each input skips; the last input moves by one."""
        sizes = [len(choice.texts) for choice in self.choices]
        return tuple(math.prod(sizes[place + 1 :]) for place in range(len(sizes)))

    @property
    def start(self) -> int:
        """The number of the picture that is shown first."""
        return sum(s * choice.start for s, choice in zip(self.strides, self.choices, strict=True))

    def html(self) -> str:
        """The face for pages: complete, accessible, without a kernel."""
        inputs = "".join(
            c.html(stride) for stride, c in zip(self.strides, self.choices, strict=True)
        )
        frames = "".join(
            f'<div class="flc-frame"{"" if number == self.start else " hidden"}>'
            f"{self._frame(figure)}</div>"
            for number, figure in enumerate(self.figures)
        )
        return (
            f'<figure class="flc-{self.kind}" style="margin:1em 0">{inputs}'
            f'<div class="flc-frames">{frames}</div>{caption_html(self.caption)}</figure>'
        )

    def _frame(self, figure: Any) -> str:
        # A caption of its own stands below each picture where the control has none for all.
        own = (
            ""
            if self.caption
            else f'<p class="flc-frame-caption">{html.escape(figure.caption)}</p>'
        )
        return figure.image() + own

    def widget(self) -> Any:
        """The live face: ipywidgets inputs that change the picture."""
        import ipywidgets

        inputs = [choice.widget() for choice in self.choices]
        picture = ipywidgets.HTML(self._frame(self.figures[self.start]))

        def show(_: object) -> None:
            number = sum(s * field.value for s, field in zip(self.strides, inputs, strict=True))
            picture.value = self._frame(self.figures[number])

        for field in inputs:
            field.observe(show, names="value")
        caption = [ipywidgets.HTML(f"<p>{html.escape(self.caption)}</p>")] if self.caption else []
        return ipywidgets.VBox([*inputs, picture, *caption])

    def __repr__(self) -> str:
        inputs = "; ".join(f"{c.label}: {', '.join(c.texts)}" for c in self.choices)
        shown = repr(self.figures[self.start])
        return f"[{self.kind}] {inputs}\n{shown}\n{self.caption}".rstrip()

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/html": self.html(), "text/plain": repr(self)}
        if hasattr(get_ipython(), "kernel"):
            # Built by hand: ipywidgets 7 (Colab) has no _repr_mimebundle_ to ask.
            view = {"version_major": 2, "version_minor": 0, "model_id": self.widget().model_id}
            bundle[VIEW_MIME] = view
        return bundle


def scrubber(
    render: Callable[[Any], Figure | HtmlFigure],
    positions: Sequence[Any],
    *,
    label: str,
    format: Callable[[Any], str] | None = None,
    start: int = 0,
    caption: str = "",
) -> Control:
    """A slider over ``positions``; ``render(position)`` draws the figure of each, once.

    ``format`` writes a position beside the slider (with its unit); ``start`` is the index shown
    first. Without ``caption``, each figure's own is shown. Raises ``ValueError`` for no label,
    fewer than two positions or too many, or a ``start`` beyond them.
    """
    texts = _texts(label, positions, format)
    if not -len(texts) <= start < len(texts):
        raise ValueError(f"start={start}, but {label!r} has positions 0 to {len(texts) - 1}")
    choice = Choice(label, texts, start % len(texts), ordered=True)
    return _drawn("scrubber", [choice], [partial(render, p) for p in positions], caption)


def lab(
    render: Callable[..., Figure | HtmlFigure],
    *,
    labels: Mapping[str, str] | None = None,
    formats: Mapping[str, Callable[[Any], str]] | None = None,
    start: Mapping[str, Any] | None = None,
    caption: str = "",
    **choices: Sequence[Any],
) -> Control:
    """Several inputs at once: ``lab(draw, alpha=(0.1, 1, 10), rule=("mean", "median"))``.

    ``render(alpha=…, rule=…)`` draws each combination once. Numbers get a slider, names a list.
    ``labels``, ``formats`` and ``start`` (a value, not an index) are given by choice name.
    Raises ``ValueError`` as ``scrubber`` does, and for a ``start`` that is not a choice.
    """
    if not choices:
        raise ValueError("give at least one choice: lab(draw, alpha=(0.1, 1, 10))")
    first = {name: values[0] for name, values in choices.items()} | dict(start or {})
    inputs = []
    for name, values in choices.items():
        if first[name] not in values:
            raise ValueError(f"start has {name}={first[name]!r}, which is not among {list(values)}")
        label = (labels or {}).get(name, name.replace("_", " "))
        texts = _texts(label, values, (formats or {}).get(name))
        ordered = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        inputs.append(Choice(label, texts, list(values).index(first[name]), ordered))
    cells = [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]
    return _drawn("lab", inputs, [partial(render, **cell) for cell in cells], caption)


def _texts(
    label: str, values: Sequence[Any], format: Callable[[Any], str] | None
) -> tuple[str, ...]:
    if not label.strip():
        raise ValueError("a control needs a label that says what it moves: label='rounds'")
    if len(values) < 2:
        raise ValueError(f"{label!r} has {len(values)} position(s): a control needs two or more")
    write = format or (lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    return tuple(write(value) for value in values)


def _drawn(
    kind: str,
    choices: Sequence[Choice],
    draws: Sequence[Callable[[], Figure | HtmlFigure]],
    caption: str,
) -> Control:
    if len(draws) > MAX_POSITIONS:
        raise ValueError(
            f"{len(draws)} pictures would stand in the page, the limit is {MAX_POSITIONS}: "
            "take fewer positions"
        )
    figures = [draw() for draw in draws]
    for figure in figures:
        if not isinstance(figure, (Figure, HtmlFigure)):
            raise TypeError(f"render must return a viz Figure, got {type(figure).__name__}")
    return Control(kind, choices, figures, caption)
