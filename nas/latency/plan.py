"""The layers and whole networks to measure for a search space, and how long that takes.

A large space has tens of thousands of layers: then a well-chosen subset is measured and the rest predicted.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.cost import cost, layer_cost
from nas.devices.device import ANCHOR
from nas.latency.layer_predictor import MINIMUM_LAYERS, standardised_features
from nas.latency.table import LatencyTable
from nas.measuring.rounds import rounds_of_a_load
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import CannotRunError, Subject
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey, layer_keys, reachable_layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace

# Networks measured end to end besides random members, at the largest and a middle resolution.
CALIBRATION_REFERENCES = (
    "mobilenet_v1",
    "mobilenet_v1_050",
    "mobilenet_v2",
    "mobilenet_v2_050",
    "mobilenet_v3_large",
    "mobilenet_v3_large_075",
    "mobilenet_v3_small",
    "mobilenet_v3_small_075",
)
_FREQUENCY_SAMPLE = 1500
_SPREAD_SAMPLE = 12


@dataclass(frozen=True, slots=True)
class TableEffort:
    """The number of layers and networks to measure.

    Attributes:
        max_keys: layers at most, None for all.
        networks: random members measured end to end.
        seed: of the choice.
    """

    max_keys: int | None = 1000
    networks: int = 80
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The layers and networks that a profile measures, and the layers it predicts.

    Attributes:
        keys: layers to measure.
        networks: networks to measure end to end, for the calibration.
        predicted: layers to predict from the measured ones.
    """

    keys: tuple[LayerKey, ...]
    networks: tuple[Architecture, ...]
    predicted: tuple[LayerKey, ...] = ()


def make_plan(
    space: SearchSpace,
    references: Iterable[Architecture],
    effort: TableEffort,
    table: LatencyTable | None = None,
) -> Plan:
    """Choose what to measure for a space.

    Args:
        space: the space to cover.
        references: networks whose layers come first, inside the space or not.
        effort: how many layers and networks to measure.
        table: a table whose measured layers need not be measured again.

    Raises:
        InputError: if so few layers would be measured that the others cannot be predicted.
    """
    # What the runtime refused once it is not asked again.
    tried = ("measured", "refused")
    known = {key for key, entry in table.entries.items() if entry.source in tried} if table else set()
    calibrating = [key for each in _calibration_references(space) for key in layer_keys(each)]
    wanted = sorted(reachable_layer_keys(space).union(calibrating), key=str)
    first = list(dict.fromkeys(key for architecture in references for key in layer_keys(architecture)))
    missing = [key for key in dict.fromkeys([*first, *wanted]) if key not in known]
    covered = len(known & {*first, *wanted})
    room = len(missing) if effort.max_keys is None else max(0, effort.max_keys - covered)
    if len(missing) <= room:
        keys = missing
    else:
        unknown_first = [key for key in first if key not in known]
        keys = _choose(space, unknown_first, calibrating, missing, known, room, effort.seed)
    chosen = set(keys) | known
    if len(chosen) < MINIMUM_LAYERS and len(missing) > len(keys):
        raise InputError(
            f"profile.max_keys={effort.max_keys} measures {len(chosen)} layers, but the others are predicted "
            f"from at least {MINIMUM_LAYERS}, better 30"
        )
    return Plan(
        keys=tuple(keys),
        networks=calibration_networks(space, effort.networks, effort.seed) if keys or table is None else (),
        predicted=tuple(key for key in dict.fromkeys([*first, *wanted]) if key not in chosen),
    )


def calibration_networks(space: SearchSpace, count: int, seed: int) -> tuple[Architecture, ...]:
    """Networks to calibrate a space's table with: references, members of all sizes; none where 0 are wanted.

    Args:
        space: the space.
        count: networks wanted.
        seed: of the random members.
    """
    members = _spread_members(space, count, seed)
    return tuple(dict.fromkeys([*_calibration_references(space), *members])) if members else ()


def seconds_needed(runtime: Runtime, plan: Plan, rounds: int) -> float:
    """A rough forecast of how long a plan takes on this machine, from a short trial of its parts.

    Args:
        runtime: what runs the layers.
        plan: what is to be measured.
        rounds: steady rounds wanted.
    """
    layers = random.Random(0).sample(plan.keys, min(8, len(plan.keys)))
    loadings = -(-rounds // rounds_of_a_load(rounds))
    runtime.runner(ANCHOR)  # what a runtime takes seconds for at its first use, it does once
    prepare_s = run_s = 0.0
    tried_macs = 0
    # Loading goes by the piece, where a network has many; running goes by multiply-accumulates.
    for kind, sample in ((plan.keys, layers), (plan.networks, plan.networks[:2])):
        for subject in sample:
            start = time.perf_counter()
            try:
                runner = runtime.runner(subject)
            except CannotRunError:
                continue
            prepare_s += (time.perf_counter() - start) * len(kind) / len(sample)
            runner()
            start = time.perf_counter()
            runner()
            run_s += time.perf_counter() - start
            tried_macs += _macs(subject)
    if not tried_macs:
        return 0.0
    total_macs = sum(map(_macs, plan.keys)) + sum(map(_macs, plan.networks))
    return prepare_s * loadings + run_s / tried_macs * total_macs * (rounds + loadings)


def _choose(
    space: SearchSpace,
    first: Sequence[LayerKey],
    calibrating: Sequence[LayerKey],
    missing: Sequence[LayerKey],
    known: Iterable[LayerKey],
    room: int,
    seed: int,
) -> list[LayerKey]:
    """References, layers of the calibration, the most frequent ones, then those farthest from all chosen."""
    chosen = list(first[:room])
    generator = random.Random(seed)
    counts: Counter[LayerKey] = Counter()
    for _ in range(_FREQUENCY_SAMPLE):
        counts.update(layer_keys(space.sample(generator)))
    taken = set(chosen) | set(known)
    frequent = [key for key in (*calibrating, *(key for key, _ in counts.most_common())) if key not in taken]
    frequent = list(dict.fromkeys(frequent))
    chosen += frequent[: (room - len(chosen)) // 3]
    taken |= set(chosen)
    by_kind = standardised_features([*missing, *known])
    left = room - len(chosen)
    pools = {kind: [key for key in members if key not in taken] for kind, members in by_kind.items()}
    total = sum(len(pool) for pool in pools.values())
    # Small kinds first: stems and heads need a few members each before blocks take the rest.
    ascending = sorted(pools.items(), key=lambda pair: len(pair[1]))
    for kind, pool in ascending:
        share = max(round(left * len(pool) / total), min(left, _SPREAD_SAMPLE))
        if kind == ascending[-1][0]:
            share = room - len(chosen)
        chosen += _farthest(by_kind[kind], [key for key in by_kind[kind] if key in taken], pool, share)
    return chosen[:room]


def _farthest(
    features: Mapping[LayerKey, NDArray[np.float64]],
    taken: Sequence[LayerKey],
    pool: Sequence[LayerKey],
    count: int,
) -> list[LayerKey]:
    """Greedy farthest-point choice of ``count`` layers from ``pool`` (Gonzalez 1985)."""
    if not pool or count <= 0:
        return []
    points = np.array([features[key] for key in pool])
    distance = np.full(len(pool), np.inf)
    for key in taken:
        distance = np.minimum(distance, ((points - features[key]) ** 2).sum(axis=1))
    found = []
    for _ in range(min(count, len(pool))):
        index = int(distance.argmax())
        found.append(pool[index])
        distance = np.minimum(distance, ((points - points[index]) ** 2).sum(axis=1))
        distance[index] = -1  # layers with equal features are at no distance: never take one twice
    return found


def _calibration_references(space: SearchSpace) -> list[Architecture]:
    ordered = sorted(space.resolutions, reverse=True)
    resolutions = dict.fromkeys([ordered[0], ordered[len(ordered) // 2]])
    return [
        reference(name, resolution, space.classes)
        for name in CALIBRATION_REFERENCES
        for resolution in resolutions
    ]


def _spread_members(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """Random members, evenly spread over the logarithm of their MACs."""
    if not count:
        return []
    generator = random.Random(seed)
    pool = [space.sample(generator) for _ in range(count * 8)]
    pool.sort(key=lambda architecture: cost(architecture).macs)
    logs = np.log([cost(architecture).macs for architecture in pool])
    # Half evenly over the range of sizes, half as they come, where most members are.
    even = np.searchsorted(logs, np.linspace(logs[0], logs[-1], (count + 1) // 2))
    chosen = {pool[min(int(index), len(pool) - 1)] for index in even}
    rest = [architecture for architecture in pool if architecture not in chosen]
    generator.shuffle(rest)
    return sorted(chosen, key=lambda architecture: architecture.id) + rest[: max(0, count - len(chosen))]


def _macs(subject: Subject) -> int:
    return layer_cost(subject).macs if isinstance(subject, LayerKey) else cost(subject).macs
