"""Time and size of Flower's SecAgg+ (its client mod and server workflow, unmodified) for one cohort, in one process.

    flower_secagg.py PARAMETERS CLIENTS DROPPED

Runs in Flower's own interpreter (`pip install flwr==1.41.0`), which knows nothing of this repository, and prints one
JSON line. No network, no processes, no training: a stub grid hands the messages over. Times are CPU seconds:
`client_cpu_s` is the median of the clients that stay, `server_cpu_s` all the rest; bytes are those of Flower's own
serialised records. Every client is everybody's neighbour; clients drop before they send their masked vector. With
`--attack` a server asks, in the one unmask request, for both shares of one node; the line says how many it got.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
STAGES = Stage.all()
THRESHOLD = 0.6
FIRST_NODE = 1000
clock = time.process_time


def size_of(record: Any) -> int:
    return sum(len(one.deflate()) for one in get_all_nested_objects(record).values())


def new_context(node: int) -> Context:
    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})


class Proxy:
    def __init__(self, node: int) -> None:
        self.node_id, self.cid = node, str(node)


class Strategy:
    """Hands every node the same parameters."""

    def __init__(self, nodes: list[int]) -> None:
        self.nodes, self.done = nodes, False

    def configure_fit(self, round_number: int, parameters: Any, manager: Any) -> list[Any]:
        return [(Proxy(node), FitIns(parameters, {})) for node in self.nodes]

    def aggregate_fit(self, round_number: int, results: list[Any], failures: list[Any]) -> tuple[None, dict[str, Any]]:
        self.done = bool(results)
        return None, {}


class Manager:
    def num_available(self) -> int:
        return 0


class Grid:
    """Delivers each message to the node's mod and times it."""

    def __init__(self, update: Any, nodes: list[int], gone: set[int], victim: int | None) -> None:
        self.update, self.gone, self.victim = update, gone, victim
        self.contexts = {node: new_context(node) for node in nodes}
        self.cpu = dict.fromkeys(nodes, 0.0)
        self.up, self.down = dict.fromkeys(nodes, 0), dict.fromkeys(nodes, 0)
        self.overhead = self.training = 0.0
        self.victims_shares = {"b": 0, "sk": 0}

    def fit(self, message: Message, context: Context) -> Message:
        started = clock()
        parameters = ndarrays_to_parameters([self.update * np.float32(1 + message.metadata.dst_node_id % 7 / 10)])
        answer = FitRes(Status(Code.OK, ""), parameters, 500, {})
        reply = Message(compat.fitres_to_recorddict(answer, False), reply_to=message)
        self.training = clock() - started  # "training" is not charged to the protocol
        return reply

    def send_and_receive(self, messages: list[Message], *, timeout: float | None = None) -> list[Message]:
        return [self.deliver(message) for message in messages]

    def deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        records = message.content.config_records[RECORD_KEY_CONFIGS]
        stage = records[Key.STAGE]
        started = clock()
        if self.victim is not None and stage == Stage.UNMASK:
            records[Key.DEAD_NODE_ID_LIST] = [self.victim]  # it stays in the active list too
        self.down[node] += size_of(message.content)
        # the mod takes keys out of what it receives, so it gets a copy
        message.content = RecordDict(
            {k: ConfigRecord(dict(v)) if isinstance(v, ConfigRecord) else v for k, v in message.content.items()}
        )
        self.overhead += clock() - started
        if node in self.gone and STAGES.index(stage) >= STAGES.index(Stage.COLLECT_MASKED_VECTORS):
            return Message(Error(code=0, reason="gone"), reply_to=message)
        self.training, started = 0.0, clock()
        reply = secaggplus_mod(message, self.contexts[node], self.fit)
        ended = clock()
        self.cpu[node] += ended - started - self.training
        self.overhead += self.training
        if reply.has_content():
            self.up[node] += size_of(reply.content)
            self.count_victims_shares(reply)
            self.overhead += clock() - ended
        return reply

    def count_victims_shares(self, reply: Message) -> None:
        records = reply.content.config_records[RECORD_KEY_CONFIGS]
        if self.victim is not None and Key.SHARE_LIST in records:
            found = [i for i, node in enumerate(records[Key.NODE_ID_LIST]) if node == self.victim]
            self.victims_shares["b"] += len(found) > 0
            self.victims_shares["sk"] += len(found) > 1


def run(parameters: int, clients: int, dropped: int, victim: int | None = None) -> tuple[dict[str, Any], Grid]:
    rng = np.random.default_rng(7)
    update = rng.standard_normal(parameters, dtype=np.float32) * np.float32(0.1)
    nodes = [FIRST_NODE + index for index in range(clients)]
    grid = Grid(update, nodes, set(nodes[:dropped]), victim)
    strategy = Strategy(nodes)
    context = LegacyContext(new_context(0), strategy=strategy, client_manager=Manager())
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([update]), True
    )
    workflow = SecAggPlusWorkflow(clients, max(2, round(THRESHOLD * clients)))
    started = clock()
    try:
        workflow(grid, context)
    except ValueError:
        if victim is None:
            raise  # else the honest workflow trips over the extra shares that the cheater wanted
    total = clock() - started - grid.overhead
    stayed = [node for node in nodes if node not in grid.gone]
    row = {
        "client_cpu_s": statistics.median(grid.cpu[node] for node in stayed),
        "server_cpu_s": total - sum(grid.cpu.values()),
        "up_ratio": statistics.median(grid.up[node] for node in stayed) / (4 * parameters),
        "down_ratio": statistics.median(grid.down[node] for node in stayed) / (4 * parameters),
        "done": strategy.done,
    }
    return row, grid


def main() -> None:
    if sys.argv[1:] == ["--attack"]:
        _, grid = run(1000, 8, 0, victim=FIRST_NODE)
        print(json.dumps(grid.victims_shares))
    else:
        row, _ = run(*map(int, sys.argv[1:]))
        print(json.dumps(row))


if __name__ == "__main__":
    main()
