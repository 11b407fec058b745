"""One round of Flower's SecAgg+, its own client modifier and server workflow, timed.

    .venv-flower/bin/python -m benchmarks.flower_secagg_peer '{"clients": 40, "length": 100000, …}'

The messages are handed over in one process: no network, no Ray. What is timed is the code between
a message that comes and one that goes. Prints one line of JSON after `MARK`. Runs in
`.venv-flower` (`make_flower_env.sh`).
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import time
from collections import defaultdict
from types import SimpleNamespace

import flwr.compat.common.recorddict_compat as compat
import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.supercore.task_identity import TaskIdentity

MARK = "@peer "
STAGES = ("setup", "share_keys", "masked_input", "unmasking")


class Grid:
    """Hands messages to the clients and counts their seconds; `gone` vanish at the third stage."""

    def __init__(self, vectors: np.ndarray, gone: list[int]) -> None:
        self.vectors, self.gone, self.stage = vectors, set(gone), 0
        self.contexts = {i: Context(0, i, {}, RecordDict(), {}) for i in range(1, len(vectors) + 1)}
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.apart = 0.0  # seconds that are not the server's

    def send_and_receive(self, messages, timeout=None):
        entered, replies = time.process_time(), []
        for message in messages:
            node = message.metadata.dst_node_id
            if STAGES[self.stage] == "masked_input" and node - 1 in self.gone:
                replies.append(Message(Error(1, "gone"), reply_to=message))
                continue
            copied = copy.deepcopy(message)  # as a wire would: its reader takes values out of it
            start = time.process_time()
            replies.append(secaggplus_mod(copied, self.contexts[node], self.fit))
            self.seconds[STAGES[self.stage]].append(time.process_time() - start)
        self.apart += time.process_time() - entered
        self.stage += 1
        return replies

    def fit(self, message: Message, context: Context) -> Message:
        """What the client app would train: its vector, and one sample."""
        parameters = ndarrays_to_parameters([self.vectors[message.metadata.dst_node_id - 1]])
        result = FitRes(Status(Code.OK, ""), parameters, 1, {})
        return Message(compat.fitres_to_recorddict(result, False), reply_to=message)


def main() -> None:
    request = json.loads(sys.argv[1])
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    n, d = request["clients"], request["length"]
    vectors = np.random.default_rng(0).uniform(-1, 1, (n, d)).astype(np.float32)
    grid = Grid(vectors, request["gone"])
    got: list[np.ndarray] = []

    def aggregate(number, results, failures):
        got.append(parameters_to_ndarrays(results[0][1].parameters)[0])
        return None, {}

    fit = FitIns(ndarrays_to_parameters([np.zeros(1, np.float32)]), {})
    proxies = [SimpleNamespace(node_id=i) for i in grid.contexts]
    state = RecordDict()
    state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(fit.parameters, True)
    context = SimpleNamespace(
        state=state,
        strategy=SimpleNamespace(
            configure_fit=lambda *_: [(proxy, fit) for proxy in proxies], aggregate_fit=aggregate
        ),
        client_manager=SimpleNamespace(num_available=lambda: n),
        history=None,
    )
    flow = SecAggPlusWorkflow(1.0, request["threshold"] / n, max_weight=1.0, clipping_range=1.0)
    workflow, server = WorkflowState(), {}
    steps = (
        flow.setup_stage, flow.share_keys_stage, flow.collect_masked_vectors_stage,
        flow.unmask_stage,
    )  # fmt: skip
    for name, step in zip(STAGES, steps, strict=True):
        start, before = time.process_time(), grid.apart
        if not step(grid, context, workflow):
            raise RuntimeError(f"the round was halted in {name}")
        server[name] = time.process_time() - start - (grid.apart - before)
    alive = [i for i in range(n) if i not in grid.gone]
    error = float(np.abs(got[0] - vectors[alive].mean(axis=0)).max())
    answer = {"client": dict(grid.seconds), "server": server, "error": error}
    print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
