"""Byzantine clients: what a liar can send, and rules that stand it.

Chapters 15, 16 and 17.
"""

from flcourse.byzantine.attacks import (
    alie,
    alie_z,
    constant,
    gaussian,
    ipm,
    mimic,
    min_max,
    min_sum,
    sign_flip,
)
from flcourse.byzantine.backdoor import (
    BackdoorScore,
    PixelTrigger,
    attack_success,
    backdoor_score,
    model_replacement,
    poisoned_client,
    with_writer,
)
from flcourse.byzantine.catalogue import ATTACKS, Lie, as_transform
from flcourse.byzantine.centres import centered_clipping, geometric_median, norm_filter
from flcourse.byzantine.coordinates import coordinate_median, mean, trimmed_mean
from flcourse.byzantine.geometry import squared_distances
from flcourse.byzantine.groups import (
    Grouped,
    GroupView,
    group_clients,
    group_means,
    spoilt_groups,
    tolerated_liars,
)
from flcourse.byzantine.matrix import Cell, Undefined, run_cell, run_matrix
from flcourse.byzantine.mixing import bucketing, nearest_neighbour_mixing
from flcourse.byzantine.poisoning import label_flip, poison
from flcourse.byzantine.rules import MIXINGS, RULES, RobustAggregate, Rule, as_aggregate
from flcourse.byzantine.screening import Condition, DroppedRows, screen
from flcourse.byzantine.selection import bulyan, krum, krum_scores, multi_krum
from flcourse.byzantine.setting import Federation, Setting, federation
from flcourse.byzantine.suppression import stealth_suppression, suppression
from flcourse.byzantine.trust import cluster_filter, fltrust, root_set, root_update

__all__ = [
    "ATTACKS",
    "MIXINGS",
    "RULES",
    "BackdoorScore",
    "Cell",
    "Condition",
    "DroppedRows",
    "Federation",
    "GroupView",
    "Grouped",
    "Lie",
    "PixelTrigger",
    "RobustAggregate",
    "Rule",
    "Setting",
    "Undefined",
    "alie",
    "alie_z",
    "as_aggregate",
    "as_transform",
    "attack_success",
    "backdoor_score",
    "bucketing",
    "bulyan",
    "centered_clipping",
    "cluster_filter",
    "constant",
    "coordinate_median",
    "federation",
    "fltrust",
    "gaussian",
    "geometric_median",
    "group_clients",
    "group_means",
    "ipm",
    "krum",
    "krum_scores",
    "label_flip",
    "mean",
    "mimic",
    "min_max",
    "min_sum",
    "model_replacement",
    "multi_krum",
    "nearest_neighbour_mixing",
    "norm_filter",
    "poison",
    "poisoned_client",
    "root_set",
    "root_update",
    "run_cell",
    "run_matrix",
    "screen",
    "sign_flip",
    "spoilt_groups",
    "squared_distances",
    "stealth_suppression",
    "suppression",
    "tolerated_liars",
    "trimmed_mean",
    "with_writer",
]
