"""Make the stored result `cifar10_fedavg`: the published setting of FedAvg on CIFAR-10.

    python data_scripts/make_cifar10_fedavg.py --root FOLDER   # the folder that holds CIFAR-10

SimpleCNN, 5 clients, all in every round, 20 rounds of 3 local epochs, batch 64, learning rate 0.01
with momentum 0.9; IID and Dirichlet(0.5); one seed. About 25 minutes a run on two free CPU cores.
A run goes on where it was interrupted (checkpoints lie in --work). Chapter 01 shows the result.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flcourse.claims import save_stored
from flcourse.data import Client, Split, load_dataset, partition
from flcourse.fedavg import Checkpoint, Round, train
from flcourse.models import Normalise, SimpleCNN
from flcourse.runtime import device

SETTING: dict[str, Any] = {"epochs": 3, "batch_size": 64, "lr": 0.01, "momentum": 0.9}
ROUNDS, NUM_CLIENTS, ALPHA, SEED = 20, 5, 0.5, 0
PARTITIONS = ("iid", "dirichlet")
PROBE_SEEDS = (0, 1, 2, 3, 4)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training pictures


def probe(split: Split, seed: int) -> float:
    """One cell that takes seconds: the test loss after three rounds with 500 samples a client."""
    clients = [
        Client(client.index, client.inputs[:500], client.labels[:500])
        for client in partition(split.train, "iid", NUM_CLIENTS, seed=seed)
    ]
    test = split.test.subset(range(1000))
    return train(_model(seed), clients, test, rounds=3, seed=seed, **SETTING).rounds[-1].loss


def run(split: Split, how: str, work: Path) -> list[dict[str, Any]]:
    """One whole run; its records so far are kept in `work`, so that it can be interrupted."""
    record_file, state_file = work / f"{how}.json", work / f"{how}.pt"
    records: list[dict[str, Any]] = []
    resume = None
    if state_file.exists():
        resume = Checkpoint(**torch.load(state_file, weights_only=True))
        records = json.loads(record_file.read_text())[: resume.round]

    def keep(record: Round, checkpoint: Checkpoint) -> None:
        records.append(asdict(record))
        record_file.write_text(json.dumps(records))
        torch.save(vars(checkpoint), state_file)
        print(how, record.round, f"{record.accuracy:.4f}", f"{record.seconds:.0f} s", flush=True)

    if resume is None or resume.round < ROUNDS:
        clients = partition(split.train, how, NUM_CLIENTS, alpha=ALPHA, seed=SEED)
        train(_model(SEED), clients, split.test, rounds=ROUNDS, seed=SEED, resume=resume,
              on_round=keep, **SETTING)  # fmt: skip
    return records


def _model(seed: int) -> torch.nn.Module:
    # Channels last: the same numbers up to rounding, and convolutions in half the time on a CPU.
    model = torch.nn.Sequential(Normalise(MEAN, STD), SimpleCNN(seed=seed))
    return model.to(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="the folder that holds CIFAR-10 (default: FLCOURSE_DATA)")
    parser.add_argument("--work", type=Path, default=Path("runs") / "cifar10_fedavg")
    parser.add_argument("--only", choices=PARTITIONS, help="run this part only, and store nothing")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    split = load_dataset("cifar10", root=options.root)
    if options.only:
        run(split, options.only, options.work)
        return
    runs = {how: run(split, how, options.work) for how in PARTITIONS}
    results: dict[str, Any] = {
        how: {key: [r[key] for r in records] for key in ("accuracy", "loss", "bytes_up")}
        for how, records in runs.items()
    }
    results["probe_loss"] = [probe(split, seed) for seed in PROBE_SEEDS]
    config = SETTING | {
        "model": "Normalise, SimpleCNN",
        "rounds": ROUNDS,
        "num_clients": NUM_CLIENTS,
        "fraction": 1.0,
        "alpha": ALPHA,
        "seed": SEED,
        "probe_seeds": PROBE_SEEDS,
        "device": str(device()),
    }
    print(save_stored("cifar10_fedavg", config=config, results=results))


if __name__ == "__main__":
    main()
