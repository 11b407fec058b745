"""Secure aggregation: the server learns the sum of the clients' vectors and nothing else.

    result = secure_sum(rows, clip=1.0, dropouts={"masked_input": [2]})
    result.total, result.survivors

Chapters 13 and 14.
"""

from flcourse.secagg.ciphers import Plan
from flcourse.secagg.client import Client
from flcourse.secagg.cost import upload_bytes
from flcourse.secagg.distributed_dp import (
    DistributedDP,
    distributed_aggregate,
    masked_sum,
    modular_sum,
    private_sum,
)
from flcourse.secagg.errors import AbortError, ProtocolError
from flcourse.secagg.field import FixedPoint, bits_needed, pack, unpack
from flcourse.secagg.graph import Degree, choose_neighbours, neighbour_sets
from flcourse.secagg.homomorphic import (
    Adder,
    HomomorphicSum,
    KeyHolder,
    he_aggregate,
    homomorphic_sum,
)
from flcourse.secagg.integer_noise import DiscreteGaussian, Skellam, discrete_gaussian_plain
from flcourse.secagg.masking import add_masks, mask_seed, self_seed
from flcourse.secagg.protocol import Run, SecureSum, as_aggregate, run_round, secure_sum
from flcourse.secagg.schemes import SCHEMES
from flcourse.secagg.server import Server
from flcourse.secagg.setup import STAGES, Setup, directory, new_identities
from flcourse.secagg.shamir import Share, combine, combine_plain, split, split_plain

__all__ = [
    "SCHEMES",
    "STAGES",
    "AbortError",
    "Adder",
    "Client",
    "Degree",
    "DiscreteGaussian",
    "DistributedDP",
    "FixedPoint",
    "HomomorphicSum",
    "KeyHolder",
    "Plan",
    "ProtocolError",
    "Run",
    "SecureSum",
    "Server",
    "Setup",
    "Share",
    "Skellam",
    "add_masks",
    "as_aggregate",
    "bits_needed",
    "choose_neighbours",
    "combine",
    "combine_plain",
    "directory",
    "discrete_gaussian_plain",
    "distributed_aggregate",
    "he_aggregate",
    "homomorphic_sum",
    "mask_seed",
    "masked_sum",
    "modular_sum",
    "neighbour_sets",
    "new_identities",
    "pack",
    "private_sum",
    "run_round",
    "secure_sum",
    "self_seed",
    "split",
    "split_plain",
    "unpack",
    "upload_bytes",
]
