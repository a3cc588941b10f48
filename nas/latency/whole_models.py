"""Networks with the head of a task, timed whole, to learn what it adds: see :mod:`nas.latency.heads`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from nas.latency.end_to_end import time_networks
from nas.latency.heads import FEWEST_MODELS, HeadCost
from nas.latency.plan import calibration_networks
from nas.latency.sessions import Bench, NetworkRecord, load_networks, networks_text, read_network_records
from nas.latency.table import LatencyTable, TableError
from nas.saving import hold, write_atomically
from search_spaces.architecture import Architecture
from search_spaces.blocks import Head
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from search_spaces.layers import layer_keys
from search_spaces.space import SearchSpace
from search_spaces.tasks import Task, TaskError, TaskNetwork

# Members of the space besides the references.
_MEMBERS = 40
_WHAT = "whole models"


def with_head(
    table: LatencyTable,
    task: Task,
    space: SearchSpace,
    references: Sequence[Architecture],
    bench: Bench,
    seed: int,
) -> LatencyTable:
    """The table as one of whole models: every latency is with the task's head instead of the classifier.

    Whole models are timed once and kept beside the table; the head is fitted to them and the table as it is.

    Args:
        table: of layers, calibrated.
        task: what the networks are for.
        space: some members are timed.
        references: so are these.
        bench: where and how to measure; its folder is that of the table.
        seed: of the choice of members.

    Raises:
        TaskError: if there are too few whole models.
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
    """
    wanted = _models(table, task, space, references, seed)
    names = "\n".join(sorted(TaskNetwork(each, task).id for each in wanted))
    path = bench.folder / f"{task.name}{task.classes}-{hashlib.sha256(names.encode()).hexdigest()[:10]}.json"
    records = kept_models(path, table) if path.exists() else []
    if not records:
        bench.say(f"timing {len(wanted)} whole models for {task.name}")
        with hold(bench.folder, _WHAT):
            timed = time_networks(wanted, table, bench, load_networks(bench.folder), task)
            records = [each.record for each in timed.networks]
            write_atomically(path, networks_text(records))
            timed.journal.unlink(missing_ok=True)
    head = fitted_head(table, task, records)
    error = head.left_out
    bench.say(
        f"{task.name}: {error.networks} whole models, each left out: off by {error.mape:.1%} on average, "
        f"worst {error.worst:.1%}, Kendall tau {error.kendall_tau:.3f}"
    )
    return table.with_entries({}, head=head)


def kept_models(path: Path, table: LatencyTable) -> list[NetworkRecord]:
    """Whole models that were timed before, from their file.

    Raises:
        TableError: if it is damaged, or holds networks that the table knows nothing of.
    """
    gate = Gate(str(path), TableError, "move it away to time whole models anew")
    records = read_network_records(gate, gate.text(path))
    for each in records:
        if not table.can_tell(each.architecture):
            gate.fail(f"holds {each.architecture.id}, which has layers that the latency table has not")
    return records


def fitted_head(table: LatencyTable, task: Task, records: Sequence[NetworkRecord]) -> HeadCost:
    """The latency that a head adds to the table's networks, from whole models timed end to end.

    Args:
        table: with layers and calibration.
        task: whose head it is.
        records: whole models timed end to end.

    Raises:
        TaskError: if there are too few.
    """
    networks = [each.architecture for each in records]
    backbones_ms = [
        sum(table.share_ms(key) for key in layer_keys(each) if not isinstance(key.part, Head))
        for each in networks
    ]
    measured_ms = np.array([each.latency_ms for each in records])
    try:
        return HeadCost.fit(task, networks, np.array(backbones_ms), measured_ms)
    except ValueError as error:
        raise TaskError(f"{task.name}: {error}") from None


def _models(
    table: LatencyTable, task: Task, space: SearchSpace, references: Sequence[Architecture], seed: int
) -> list[Architecture]:
    """Which networks are timed with the head: references and members of all sizes whose layers are known."""
    found = []
    for each in dict.fromkeys([*references, *calibration_networks(space, _MEMBERS, seed)]):
        with suppress(InputError):
            TaskNetwork(each, task)
            if table.can_tell(each):
                found.append(each)
    if len(found) < FEWEST_MODELS:
        raise TaskError(
            f"{task.name} needs {FEWEST_MODELS} whole models whose layers the latency table holds, but it "
            f"holds those of {len(found)}: measure more networks (profile.networks)"
        )
    return found
