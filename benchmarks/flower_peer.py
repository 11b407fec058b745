"""The benchmark's clients on Flower's simulation, driven round by round from another process.

    .venv-flower/bin/python -m benchmarks.flower_peer '{"model": "MLP", "num_clients": 10, …}'

An ordinary Flower app: `ClientApp`, `ServerApp`, the strategy `FedAvg`, Ray with one CPU a client.
Only the data and the order of the samples come from flcourse, so the global model must come out
equal up to rounding, which makes Flower an oracle as well. Between two rounds the server waits for
a line on standard input, so that the caller can let others take their turn; every answer is a line
on standard output that starts with `MARK`. Runs in `.venv-flower` (`make_flower_env.sh`).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from benchmarks.federation import Setting, make_clients, make_model
from flcourse.data import Client
from flcourse.local import batches
from flcourse.runtime import generator

MARK = "@peer "
client_app = ClientApp()


@functools.cache  # once in each Ray process, not once a message
def _clients(setting: Setting) -> list[Client]:
    torch.set_num_threads(1)
    return make_clients(setting)


@functools.cache
def _model(setting: Setting) -> nn.Module:
    return make_model(setting)


@client_app.train()
def fit(message: Message, context: Context) -> Message:
    """One client's local training, as Flower's own PyTorch example writes it."""
    config = dict(message.content["config"])
    number = config.pop("server-round")
    setting = Setting(**config)
    client = _clients(setting)[context.node_config["partition-id"]]
    model = _model(setting)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(model.parameters(), lr=setting.lr)
    order = generator(setting.seed, "shuffle", number, client.index)
    for chosen in batches(len(client), setting.epochs, setting.batch_size, order):
        optimiser.zero_grad()
        F.cross_entropy(model(client.inputs[chosen]), client.labels[chosen]).backward()
        optimiser.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(client)}),
        }
    )
    return Message(content=content, reply_to=message)


def say(**answer: Any) -> None:
    """One answer to the caller."""
    print(MARK + json.dumps(answer), flush=True)


def make_server(setting: Setting, rounds: int, result: str) -> ServerApp:
    """A server that reports the seconds of each round, waits in between, and saves the model."""
    server_app = ServerApp()
    started = time.perf_counter()

    def between(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        nonlocal started
        say(round=number, seconds=time.perf_counter() - started)
        if number == rounds:
            torch.save(arrays.to_torch_state_dict(), result)
        elif not sys.stdin.readline():
            raise EOFError("the caller has left")
        started = time.perf_counter()
        return None

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        # No evaluation on the clients, and nobody is left out.
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(make_model(setting).state_dict()),
            num_rounds=rounds,
            train_config=ConfigRecord(vars(setting).copy()),
            evaluate_fn=between,
        )

    return server_app


def main() -> None:
    """Run the setting that the command line holds as JSON."""
    request = json.loads(sys.argv[1])
    rounds, result, cpus = request.pop("rounds"), request.pop("result"), request.pop("cpus")
    setting = Setting(**request)
    # From the module, not from __main__: Ray sends what belongs to __main__ by value, every time.
    from benchmarks.flower_peer import client_app, make_server

    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(
        server_app=make_server(setting, rounds, result),
        client_app=client_app,
        num_supernodes=setting.num_clients,
        backend_config={
            "init_args": {"num_cpus": cpus, "log_to_driver": False, "logging_level": "error"},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    main()
