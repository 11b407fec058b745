"""One call for each figure of the course; every figure has alt text and a caption of its own.

A call takes plain data and returns a ``Figure`` whose HTML is a ``<figure>``; a caption's numbers
are computed from the data that is drawn. ``base`` holds the house style.
"""

from flcourse.viz.base import COLOURS, INK, SERIES, Figure, HtmlFigure, house_style, new_figure
from flcourse.viz.byzantine_15 import (
    breakdown,
    lies_and_training,
    one_liar,
    pulls,
    robust_accuracy,
    turning_point,
)
from flcourse.viz.byzantine_16 import (
    lie_rule_matrix,
    lies_among_rows,
    price_of_a_lie,
    rules_under_lie,
    worse_than_the_mean,
)
from flcourse.viz.byzantine_17 import (
    backdoor_by_scale,
    backdoor_defences,
    cancelling,
    given_away,
    price_of_groups,
)
from flcourse.viz.defended import attackers_by_defence
from flcourse.viz.diagrams import (
    adversary_map,
    federation_diagram,
    privacy_stack,
    round_diagram,
)
from flcourse.viz.emerging import emerging, loss_and_psnr
from flcourse.viz.encryption_14 import (
    noise_by_trust,
    paillier_sum,
    price_of_precision,
    slots,
    update_costs,
)
from flcourse.viz.inversion import decibel_ladder, recovered_grid
from flcourse.viz.layers import equations_and_unknowns, gradient_by_class, layer_protocol
from flcourse.viz.leakage import hero, picture_grid, reconstruction, record_table_comparison
from flcourse.viz.learning import (
    accuracy_against_megabytes,
    client_drift,
    drift_line,
    learning_curves,
    partition_bars,
)
from flcourse.viz.measured import attack_table, label_and_picture, success_over_seeds, sweep
from flcourse.viz.privacy_10 import (
    classic_against_exact,
    errors_by_clients,
    private_histogram,
    two_worlds,
)
from flcourse.viz.privacy_11 import (
    audits,
    claimed_and_true,
    claimed_over_true,
    epsilon_by_accountant,
    epsilon_over_steps,
    noise_by_accountant,
    scores_by_rounds,
)
from flcourse.viz.privacy_12 import accuracy_bars, cost_by_clients, price_of_noise
from flcourse.viz.secagg_13 import (
    bytes_over_plain,
    masked_sum,
    message_sequence,
    normal_masks,
    round_seconds,
    word_histograms,
)

__all__ = [
    "COLOURS",
    "INK",
    "SERIES",
    "Figure",
    "HtmlFigure",
    "accuracy_against_megabytes",
    "accuracy_bars",
    "adversary_map",
    "attack_table",
    "attackers_by_defence",
    "audits",
    "backdoor_by_scale",
    "backdoor_defences",
    "breakdown",
    "bytes_over_plain",
    "cancelling",
    "claimed_and_true",
    "claimed_over_true",
    "classic_against_exact",
    "client_drift",
    "cost_by_clients",
    "decibel_ladder",
    "drift_line",
    "emerging",
    "epsilon_by_accountant",
    "epsilon_over_steps",
    "equations_and_unknowns",
    "errors_by_clients",
    "federation_diagram",
    "given_away",
    "gradient_by_class",
    "hero",
    "house_style",
    "label_and_picture",
    "layer_protocol",
    "learning_curves",
    "lie_rule_matrix",
    "lies_among_rows",
    "lies_and_training",
    "loss_and_psnr",
    "masked_sum",
    "message_sequence",
    "new_figure",
    "noise_by_accountant",
    "noise_by_trust",
    "normal_masks",
    "one_liar",
    "paillier_sum",
    "partition_bars",
    "picture_grid",
    "price_of_a_lie",
    "price_of_groups",
    "price_of_noise",
    "price_of_precision",
    "privacy_stack",
    "private_histogram",
    "pulls",
    "reconstruction",
    "record_table_comparison",
    "recovered_grid",
    "robust_accuracy",
    "round_diagram",
    "round_seconds",
    "rules_under_lie",
    "scores_by_rounds",
    "slots",
    "success_over_seeds",
    "sweep",
    "turning_point",
    "two_worlds",
    "update_costs",
    "word_histograms",
    "worse_than_the_mean",
]
