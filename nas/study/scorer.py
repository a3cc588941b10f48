"""Accuracy and latency of many members of a space at once.

A member is a row of candidate numbers, one for each parameter of the space. Everything that depends on
one block alone (its latency, its MACs, what the predictor takes from it) is computed once for every
block that can occur and kept in dense tables; scoring a network is then a few look-ups a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from nas.accuracy.features import (
    BLOCK_VALUES,
    CLASSES,
    Floats,
    RunArrays,
    block_values,
    head_values,
    stem_values,
)
from nas.accuracy.imagenet import Predictor
from nas.cost import Cost, Limits, layer_cost
from nas.latency.table import LatencyTable
from search_spaces.blocks import IMAGE_CHANNELS
from search_spaces.layers import LayerKey
from search_spaces.ops import halve, side_after
from search_spaces.space import NotInSpaceError, SearchSpace
from search_spaces.stage import CandidateStage, Parameters, Rounding, Stage

Choices = NDArray[np.int64]
# Of a layer, and the stride of the map that it takes.
LayerTimer = Callable[[LayerKey, int], float]

INACTIVE = -1
_CHUNK = 2048  # networks at once: their arrays stay in the processor's cache

# (width multiplier, channels, side of the feature map) between two stages.
_State = tuple[float, int, int]
# A weighted sum of candidate numbers, by parameter.
_Index = dict[str, int]


@dataclass(frozen=True, slots=True)
class Scores:
    """The numbers a search ranks N networks by; NaN where the predictor refuses a network.

    Attributes:
        top1: (N,) percent.
        deviation: (N,) standard deviation in percentage points.
        latency_ms: (N,) sum over layers.
        macs: (N,) multiply-accumulates.
        parameters: (N,) weights, norms included.
    """

    top1: Floats
    deviation: Floats
    latency_ms: Floats
    macs: Floats
    parameters: Floats


def layer_latency(table: LatencyTable, limits: Limits | None = None) -> LayerTimer:
    """The latency each layer of a table adds to a network, with the head of a task if it has one.

    Args:
        table: where latencies come from.
        limits: a layer that holds more memory than they allow takes for ever.
    """
    head = table.header.head
    most = math.inf if limits is None else limits.peak_values

    def latency_ms(key: LayerKey, stride: int) -> float:
        if layer_cost(key).peak_values > most:
            return math.inf
        share_ms = table.share_ms(key)
        return share_ms if head is None else head.layer_ms(key, stride, share_ms)

    return latency_ms


class BatchScorer:
    """Scores rows of candidate numbers.

    Args:
        space: the search space.
        predictor: predicts accuracy; without one, accuracies are NaN.
        layer_latency: milliseconds that a layer adds, called once for each reachable layer;
            see :func:`layer_latency`.
    """

    def __init__(
        self,
        space: SearchSpace,
        predictor: Predictor | None = None,
        layer_latency: LayerTimer | None = None,
    ) -> None:
        self.space = space
        self.parameters = space.parameters()
        self.counts = np.array([len(choices) for choices in self.parameters.values()], np.int64)
        self._columns = {name: number for number, name in enumerate(self.parameters)}
        self._predictor = predictor
        self._latency = layer_latency or (lambda key, stride: 0.0)
        self._build_tables()

    # -- rows ----------------------------------------------------------------------------------

    def sample(self, count: int, generator: np.random.Generator) -> Choices:
        """(count, P) rows, each parameter drawn uniformly."""
        return self.canonical(generator.integers(0, self.counts, (count, len(self.counts))))

    def canonical(self, rows: Choices) -> Choices:
        """Rows with :data:`INACTIVE` for parameters of blocks that do not exist."""
        rows = rows.copy()
        for number, stage in enumerate(self.space.stages, start=1):
            prefix = f"stage{number}"
            depth = np.array(stage.depths)[self._column(rows, f"{prefix}.depth")]
            # A parameter is there as soon as the first block is that it decides.
            first = {f"{prefix}.width": 1}
            for block in range(max(stage.depths), 0, -1):
                first |= dict.fromkeys(stage.choices(prefix, block), block)
            for name, block in first.items():
                if name in self._columns:
                    rows[depth < block, self._columns[name]] = INACTIVE
        return rows

    def encode(self, parameters: Mapping[str, object]) -> Choices:
        """The row (P,) of a setting, e.g. of ``space.encode(reference)``.

        Raises:
            NotInSpaceError: if a value is no candidate.
        """
        row = np.full(len(self.counts), INACTIVE, np.int64)
        for name, value in parameters.items():
            if name not in self.parameters or value not in self.parameters[name]:
                raise NotInSpaceError(f"the space {self.space.name!r} has no {name}={value!r}")
            row[self._columns[name]] = self.parameters[name].index(value)
        return row

    def decode(self, row: Choices) -> Parameters:
        """The active parameters of one row (P,)."""
        return {
            name: choices[number]
            for (name, choices), number in zip(self.parameters.items(), row.tolist(), strict=True)
            if number != INACTIVE
        }

    def _column(self, rows: Choices, name: str) -> Choices:
        # A parameter with one candidate is no column. Inactive cells may hold anything: they are masked.
        if name not in self._columns:
            return np.zeros(len(rows), np.int64)
        return np.maximum(rows[:, self._columns[name]], 0)

    # -- tables --------------------------------------------------------------------------------

    def _build_tables(self) -> None:
        space = self.space
        starts: dict[_State, None] = {}
        stem_shape = (len(space.resolutions), len(space.width_multipliers), len(space.stems))
        self._stem_values = np.zeros((*stem_shape, 3))
        self._stem_latency = np.zeros(stem_shape)
        stem_states: dict[tuple[int, ...], _State] = {}
        for index in np.ndindex(stem_shape):
            resolution, multiplier = space.resolutions[index[0]], space.width_multipliers[index[1]]
            stem = space.stems[index[2]].build(space.rounding, multiplier)
            self._stem_values[index] = stem_values(stem, resolution)
            self._stem_latency[index] = self._latency(LayerKey(resolution, IMAGE_CHANNELS, stem), 1)
            stem_states[index] = (multiplier, stem.channels, halve(resolution))
            starts[stem_states[index]] = None
        states = list(starts)
        numbers = {state: number for number, state in enumerate(states)}
        self._first_state = np.zeros(stem_shape, np.int64)
        for index, state in stem_states.items():
            self._first_state[index] = numbers[state]

        self._stages: list[_StageTables] = []
        stride = 2
        for number, stage in enumerate(space.stages, start=1):
            latency = functools.partial(self._latency_at, stride)
            tables = _StageTables.of(stage, f"stage{number}", states, space.rounding, latency)
            stride *= stage.stride
            self._stages.append(tables)
            states = tables.states_after
        wanted: list[_Index] = [{name: 1} for name in ("resolution", "width_multiplier", "stem", "head")]
        wanted += [index for tables in self._stages for index in tables.indices]
        self._index_weights = np.zeros((len(wanted), len(self.counts)), np.float32)
        for number, weights in enumerate(wanted):
            for name, weight in weights.items():
                # A parameter with one candidate is no column: it adds nothing.
                if name in self._columns:
                    self._index_weights[number, self._columns[name]] = weight

        # Heads, by the state after the last stage.
        shape = (len(states), len(space.heads))
        self._head_values, self._head_latency = np.zeros((*shape, 2)), np.zeros(shape)
        self._head_cost = np.zeros((*shape, 2))
        for index in np.ndindex(shape):
            multiplier, channels, size = states[index[0]]
            head = space.heads[index[1]].build(space.rounding, multiplier, channels)
            key = LayerKey(size, channels, head, space.classes)
            spent: Cost = layer_cost(key)
            self._head_values[index] = head_values(head, channels)
            self._head_latency[index] = self._latency(key, stride)
            self._head_cost[index] = spent.macs, spent.parameters

    def _latency_at(self, stride: int, key: LayerKey) -> float:
        return self._latency(key, stride)

    # -- scoring -------------------------------------------------------------------------------

    def score(self, rows: Choices) -> Scores:
        """Scores of (N, P) rows; inactive cells are ignored."""
        parts = [self._score(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
        if not parts:
            return Scores(*(np.zeros(0) for _ in fields(Scores)))
        columns = zip(*parts, strict=True)
        return Scores(*(np.concatenate(column) for column in columns))

    def arrays(self, rows: Choices) -> RunArrays:
        """The predictor's input for (N, P) rows."""
        return self._walk(rows)[0]

    def _score(self, rows: Choices) -> tuple[Floats, ...]:
        networks, latency, head_cost = self._walk(rows)
        if self._predictor is None or self.space.classes != CLASSES:
            top1, deviation = np.full((2, len(rows)), np.nan)
        else:
            top1, deviation = self._predictor.predict_batch(networks)
        spent = networks.stem[:, 1:] + head_cost + networks.runs[:, :, _COSTS].sum(0)
        return top1, deviation, latency, spent[:, 0], spent[:, 1]

    def _walk(self, rows: Choices) -> tuple[RunArrays, Floats, Floats]:
        # All indices are weighted sums of candidate numbers: one product, exact in single precision.
        indices = (self._index_weights @ np.maximum(rows, 0).astype(np.float32).T).astype(np.int64)
        resolution, multiplier, stem_number, head_number = indices[:4]
        stem = (resolution, multiplier, stem_number)
        state = self._first_state[stem]
        runs = np.empty((len(self._stages), len(rows), len(BLOCK_VALUES) + 1))
        begin = 4
        for tables, run in zip(self._stages, runs, strict=True):
            end = begin + len(tables.indices)
            state = tables.walk(state, indices[begin:end], run)
            begin = end
        head = (state, head_number)
        latency = self._stem_latency[stem] + runs[:, :, -1].sum(0) + self._head_latency[head]
        networks = RunArrays(
            np.array(self.space.resolutions, float)[resolution],
            self._stem_values[stem],
            self._head_values[head],
            runs[:, :, :-1],
        )
        return networks, latency, self._head_cost[head]


_COSTS = slice(BLOCK_VALUES.index("macs"), BLOCK_VALUES.index("macs") + 2)


@dataclass(frozen=True, slots=True)
class _StageTables:
    """A stage as a look-up table of its blocks.

    A setting is the mixed-radix number of the parameters that decide a block.

    Attributes:
        depths: numbers of blocks to choose from.
        layers: the largest of them.
        widths: how many widths there are to choose from.
        settings: how many settings a block has.
        indices: what :meth:`walk` takes: depth, width and the setting of each block.
        cells: (cells, values) ``block_values`` and the latency: first blocks by (state before, width,
            setting), further ones by (state after, setting), and a row of zeros for absent ones.
        next_state: (states before x (widths + 1),) the last column for depth 0.
        states_after: the states numbered by ``next_state``.
    """

    depths: Choices
    layers: int
    widths: int
    settings: int
    indices: list[_Index]
    cells: Floats
    next_state: Choices
    states_after: list[_State]

    @classmethod
    def of(
        cls,
        stage: Stage | CandidateStage,
        prefix: str,
        states: Sequence[_State],
        rounding: Rounding,
        latency: Callable[[LayerKey], float],
    ) -> _StageTables:
        widths, depths, settings = stage.widths, np.array(stage.depths), stage.variety

        def cells(channels: int, out: int, stride: int, size: int) -> Iterable[tuple[float, ...]]:
            for made in stage.blocks(channels, out, stride, rounding):
                time = 0.0 if made.is_identity else latency(LayerKey(size, channels, made))
                yield (*block_values(made, size), time)

        layers = int(depths.max())
        after: dict[_State, int] = {}
        next_state = np.zeros((len(states), len(widths) + 1), np.int64)
        first = np.zeros((len(states), len(widths), settings, len(BLOCK_VALUES) + 1))
        for number, (multiplier, channels, size) in enumerate(states):
            if 0 in depths:
                next_state[number, -1] = after.setdefault((multiplier, channels, size), len(after))
            if not layers:
                continue
            out_size = side_after(size, stage.stride)
            for column, width in enumerate(widths):
                out = rounding.width(width, multiplier)
                next_state[number, column] = after.setdefault((multiplier, out, out_size), len(after))
                first[number, column] = list(cells(channels, out, stage.stride, size))
        further = np.zeros((len(after), settings, len(BLOCK_VALUES) + 1))
        if layers > 1:
            for number in sorted(set(next_state[:, :-1].ravel().tolist())):
                _, channels, size = list(after)[number]
                further[number] = list(cells(channels, channels, 1, size))
        indices: list[_Index] = [{f"{prefix}.depth": 1}, {f"{prefix}.width": 1}]
        for number in range(1, layers + 1):
            # Mixed-radix weights: how far a step in one parameter moves the number of the setting.
            step, index = settings, {}
            for name, candidates in stage.choices(prefix, number).items():
                step //= len(candidates)
                index[name] = step
            indices.append(index)
        values = len(BLOCK_VALUES) + 1
        return cls(
            depths,
            layers,
            len(widths),
            settings,
            indices,
            np.concatenate([first.reshape(-1, values), further.reshape(-1, values), np.zeros((1, values))]),
            next_state.ravel(),
            list(after),
        )

    def walk(self, state: Choices, indices: Choices, run: Floats) -> Choices:
        """States (N,) after the stage; fills ``run`` (N, values) with the sums over its blocks.

        Args:
            state: (N,) states before.
            indices: (2 + layers, N) as :attr:`indices` says.
            run: where the sums go.
        """
        depth, width = self.depths[indices[0]], indices[1]
        if not self.depths.min():
            width = np.where(depth > 0, width, self.widths)
        after: Choices = self.next_state[state * (self.widths + 1) + width]
        absent = len(self.cells) - 1
        further = (absent - len(self.states_after) * self.settings) + after * self.settings
        first = (state * self.widths + width) * self.settings
        run.fill(0)
        for number, setting in enumerate(indices[2:]):
            cell = (further if number else first) + setting
            if number >= self.depths.min():
                cell[depth <= number] = absent
            run += self.cells.take(cell, axis=0)
        return after
