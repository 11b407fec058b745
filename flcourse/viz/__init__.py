"""One call for each figure of the course; every figure has alt text and a caption of its own.

A call takes plain data and returns a ``Figure`` whose HTML is a ``<figure>``; a caption's numbers
are computed from the data that is drawn. ``base`` holds the house style.
"""

from flcourse.viz.base import COLOURS, INK, SERIES, Figure, HtmlFigure, house_style, new_figure
from flcourse.viz.diagrams import (
    adversary_map,
    federation_diagram,
    privacy_stack,
    round_diagram,
)
from flcourse.viz.leakage import hero, picture_grid, reconstruction, record_table_comparison
from flcourse.viz.learning import (
    accuracy_against_megabytes,
    client_drift,
    drift_line,
    learning_curves,
    partition_bars,
)

__all__ = [
    "COLOURS",
    "INK",
    "SERIES",
    "Figure",
    "HtmlFigure",
    "accuracy_against_megabytes",
    "adversary_map",
    "client_drift",
    "drift_line",
    "federation_diagram",
    "hero",
    "house_style",
    "learning_curves",
    "new_figure",
    "partition_bars",
    "picture_grid",
    "privacy_stack",
    "reconstruction",
    "record_table_comparison",
    "round_diagram",
]
