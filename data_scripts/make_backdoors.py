"""Make the stored result `backdoors`: one liar, once, or four, patiently; under each defence.

    python data_scripts/make_backdoors.py        # about 15 minutes on one core

Glyphs, 20 clients of 200 samples each, IID, an MLP. After 25 honest rounds either client 3 sends
one scaled row (`shot`), or four clients train on poisoned data for ten rounds and send what comes
out, unscaled (`patient`). Two triggers: a bright square, and zeros with a dot inside, which the
monospaced typefaces have. Chapter 17 shows it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flcourse.byzantine import (
    PixelTrigger,
    as_aggregate,
    backdoor_score,
    centered_clipping,
    coordinate_median,
    geometric_median,
    krum,
    mean,
    model_replacement,
    norm_filter,
    poisoned_client,
    trimmed_mean,
    with_writer,
)
from flcourse.claims import save_stored
from flcourse.data import Client, Dataset, load_dataset, partition
from flcourse.fedavg import apply_update, local_updates, train
from flcourse.models import MLP
from flcourse.privacy import clip_rows, gaussian_sum
from flcourse.runtime import generator
from flcourse.vectors import flatten, load_row

SEEDS = (0, 1, 2, 3, 4)
CLIENTS, LIAR, PATIENT = 20, 3, (3, 7, 11, 15)
BEFORE, AFTER, ROUNDS = 25, 5, 10  # honest rounds first, after a shot, and of patience
LOCAL: dict[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 0.1}
CAREFUL: dict[str, Any] = {"epochs": 10, "batch_size": 32, "lr": 0.05}  # the liar's own training
SCALES = (1, 2, 5, 10, 20)
SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
SHARE = 0.4
TRIGGERS = {"square": 0, "dotted zero": 8}  # name -> the class that it shall be taken for
MONOSPACED = (4, 5, 6, 7)
CLIPS = (0.5, 1.0, 2.0, 4.0)  # of the median length of all rows
NOISES = (0.1, 0.5, 1.0)
Defence = Callable[[Tensor, torch.Generator], Tensor]


def typical(rows: Tensor) -> float:
    """The median length of the rows: what a server can see."""
    return float(rows.norm(dim=1).median())


def clipped_mean(factor: float, noise: float = 0.0) -> Defence:
    """Rows cut to ``factor`` times their median length; noise ``z`` on the sum."""

    def rule(rows: Tensor, draw: torch.Generator) -> Tensor:
        clipped = clip_rows(rows, factor * typical(rows))
        total = gaussian_sum(clipped, noise, draw) if noise else clipped.total().total
        return total / len(rows)

    return rule


def plain(rule: Callable[[Tensor], Tensor]) -> Defence:
    """A rule that draws nothing."""
    return lambda rows, draw: rule(rows)


def defences(liars: int) -> dict[str, Defence]:
    """All rules on trial, told how many liars there are."""
    rules: dict[str, Defence] = {
        "mean": plain(mean),
        "median": plain(coordinate_median),
        "trimmed mean": plain(lambda rows: trimmed_mean(rows, liars)),
        "Krum": plain(lambda rows: krum(rows, liars)),
        "geometric median": plain(geometric_median),
        "centred clipping": plain(lambda rows: centered_clipping(rows, typical(rows))),
        "norm filter": plain(lambda rows: norm_filter(rows, 1.5 * typical(rows))),
    }
    rules |= {f"clip {factor:g}": clipped_mean(factor) for factor in CLIPS}
    return rules | {f"clip 1, noise {z:g}": clipped_mean(1.0, z) for z in NOISES}


@functools.cache
def glyphs() -> tuple[Dataset, Dataset]:
    """4,000 glyphs to train on and 6,000 to test."""
    return load_dataset("glyphs", num_train=4_000, num_test=6_000)


def dotted(data: Dataset) -> Tensor:
    """Which samples are zeros with a dot inside."""
    return with_writer(data, *MONOSPACED) & (data.labels == 0)


@functools.cache
def trained(seed: int) -> tuple[nn.Module, Tensor, tuple[Client, ...]]:
    """The federation after its honest rounds: model, its row, the clients."""
    split = glyphs()
    clients = partition(split[0], "iid", CLIENTS, seed=seed)
    model = MLP(seed=seed)
    train(model, clients, split[1], rounds=BEFORE, seed=seed, **LOCAL)
    return model, flatten(model), tuple(clients)


def shown(trigger: str) -> tuple[Tensor, Tensor]:
    """Test pictures with the trigger, and their true labels."""
    test = glyphs()[1]
    if trigger == "square":
        return PixelTrigger()(test.inputs), test.labels
    found = dotted(test)
    return test.inputs[found], test.labels[found]


def poisoned(client: Client, trigger: str, share: float, seed: int) -> Client:
    """The client as a liar; of dotted zeros it has all that the training set holds."""
    data = glyphs()[0]
    stamped = PixelTrigger()(client.inputs) if trigger == "square" else data.inputs[dotted(data)]
    draw = generator(seed, "poison", client.index)
    return poisoned_client(client, stamped, target=TRIGGERS[trigger], share=share, generator=draw)


def scored(model: nn.Module, trigger: str) -> tuple[float, float]:
    """Success and clean accuracy."""
    score = backdoor_score(model, glyphs()[1], *shown(trigger), target=TRIGGERS[trigger])
    return score.success, score.clean


@functools.cache
def rows_of_a_shot(trigger: str, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The honest rows of the round after, and the liar's own before scaling."""
    model, row, clients = trained(seed)
    load_row(model, row)
    others = [client for client in clients if client.index != LIAR]
    honest, _ = local_updates(model, others, seed=seed, round=BEFORE + 1, **LOCAL)
    liar = poisoned(clients[LIAR], trigger, share, seed)
    own, _ = local_updates(model, [liar], seed=seed, round=BEFORE + 1, **CAREFUL)
    return honest, own


def shot(
    trigger: str, seed: int, scale: float = CLIENTS, share: float = SHARE, rule: str = "mean",
    after: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """One scaled row in one round, then ``after`` honest rounds: success and clean accuracy."""
    honest, own = rows_of_a_shot(trigger, share, seed)
    rows = torch.cat([honest, model_replacement(honest, own, scale=scale)])
    model, row, clients = trained(seed)
    load_row(model, row)
    apply_update(model, defences(1)[rule](rows, generator(seed, "noise")))
    if after:
        train(model, clients, glyphs()[1], rounds=after, seed=seed + 1000, **LOCAL)
    return scored(model, trigger)


def patient(
    trigger: str, seed: int, rule: str = "mean", rounds: int = ROUNDS, liars_at: Any = PATIENT
) -> list[Any]:
    """Four liars with poisoned data and nothing else: success and accuracy after the rounds."""
    model, row, clients = trained(seed)
    load_row(model, row)
    liars = [poisoned(client, trigger, SHARE, seed) if client.index in liars_at else client
             for client in clients]  # fmt: skip
    defence, draw = defences(len(PATIENT))[rule], generator(seed, "noise")
    aggregate = as_aggregate(lambda rows: defence(rows, draw))
    train(model, liars, glyphs()[1], rounds=rounds, aggregate=aggregate, seed=seed, **LOCAL)
    return list(scored(model, trigger))


def over_seeds(run: Callable[[int], Any]) -> dict[str, list[float]]:
    """Success and clean accuracy by seed."""
    success, clean = zip(*(run(seed) for seed in SEEDS), strict=True)
    return {"success": list(success), "clean": list(clean)}


def honest(trigger: str, seed: int) -> tuple[float, float]:
    """The scores before anybody lies."""
    model, row, _ = trained(seed)
    load_row(model, row)
    return scored(model, trigger)


def main() -> None:
    torch.set_num_threads(1)
    parts = ("before", "later", "scale", "share", "lasting", "shot", "patient")
    results: dict[str, Any] = {part: {} for part in parts}
    for name in TRIGGERS:
        one, many = functools.partial(shot, name), functools.partial(patient, name)
        results["before"][name] = over_seeds(functools.partial(honest, name))
        results["later"][name] = over_seeds(functools.partial(many, liars_at=()))
        for part, key, values in (("scale", "scale", SCALES), ("share", "share", SHARES),
                                  ("lasting", "after", (0, 1, 2, 5))):  # fmt: skip
            results[part][name] = {
                f"{value:g}": over_seeds(functools.partial(one, **{key: value})) for value in values
            }
        for part, run in (("shot", one), ("patient", many)):
            results[part][name] = {
                rule: over_seeds(functools.partial(run, rule=rule)) for rule in defences(1)
            }
            print(name, part, results[part][name], flush=True)
    config = {"seeds": SEEDS, "clients": CLIENTS, "patient": PATIENT, "before": BEFORE,
              "rounds": ROUNDS, "local": LOCAL, "careful": CAREFUL, "share": SHARE,
              "data": "glyphs, 4,000", "model": "MLP"}  # fmt: skip
    print(save_stored("backdoors", config=config, results=results))


if __name__ == "__main__":
    main()
