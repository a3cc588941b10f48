"""Accuracy and latency of many members of a space at once.

A member is a row of candidate numbers, one for each parameter of the space. Everything that depends on
one block alone (its latency, its MACs, what the predictor takes from it) is computed once for every
block that can occur and kept in dense tables; scoring a network is then a few look-ups a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.accuracy.features import BLOCK_VALUES, BlockArrays, block_values, head_width, stem_values
from nas.accuracy.predictor import Predictor
from nas.cost import Cost, layer_cost
from nas.layers import IMAGE_CHANNELS, LayerKey
from search_spaces.block import Block, halve
from search_spaces.space import NotInSpaceError, SearchSpace
from search_spaces.stage import BLOCK_FIELDS, CandidateStage, Parameters, Rounding, Stage

Choices = NDArray[np.int64]
Floats = NDArray[np.float64]
LayerLatency = Callable[[LayerKey], float]

INACTIVE = -1
_CHUNK = 4096  # networks at once: their arrays stay in the processor's cache

# (width multiplier, channels, side of the feature map) between two stages.
_State = tuple[float, int, int]


@dataclass(frozen=True, slots=True)
class Scores:
    """What a search ranks N networks by; NaN where the predictor refuses a network.

    Attributes:
        top1: (N,) percent.
        deviation: (N,) standard deviation in percentage points.
        latency_ms: (N,) sum over layers, before any calibration.
        layers: (N,) number of layers that take time, for the calibration.
        macs: (N,) multiply-accumulates.
        parameters: (N,) weights, norms included.
    """

    top1: Floats
    deviation: Floats
    latency_ms: Floats
    layers: Floats
    macs: Floats
    parameters: Floats


class BatchScorer:
    """Scores rows of candidate numbers.

    Args:
        space: the search space.
        predictor: predicts accuracy; without one, accuracies are NaN.
        layer_latency: milliseconds of a layer, called once for each reachable layer.
    """

    def __init__(
        self,
        space: SearchSpace,
        predictor: Predictor | None = None,
        layer_latency: LayerLatency | None = None,
    ) -> None:
        self.space = space
        self.parameters = space.parameters()
        self.counts = np.array([len(choices) for choices in self.parameters.values()], np.int64)
        self._columns = {name: number for number, name in enumerate(self.parameters)}
        self._predictor = predictor
        self._latency = layer_latency or (lambda _: 0.0)
        self._build_tables()

    # -- rows ----------------------------------------------------------------------------------

    def sample(self, count: int, generator: np.random.Generator) -> Choices:
        """(count, P) rows, each parameter drawn uniformly."""
        return self.canonical(generator.integers(0, self.counts, (count, len(self.counts))))

    def mutate(self, rows: Choices, rate: float, generator: np.random.Generator) -> Choices:
        """Copies of rows in which each parameter is drawn anew with probability ``rate``."""
        fresh = generator.integers(0, self.counts, rows.shape)
        chosen = (generator.random(rows.shape) < rate) | (rows == INACTIVE)
        return self.canonical(np.where(chosen, fresh, rows))

    def canonical(self, rows: Choices) -> Choices:
        """Rows with :data:`INACTIVE` for parameters of blocks that do not exist."""
        rows = rows.copy()
        for number, stage in enumerate(self.space.stages, start=1):
            if isinstance(stage, CandidateStage):
                continue
            prefix = f"stage{number}"
            depth = np.array(stage.depths)[self._column(rows, f"{prefix}.depth")]
            for name, column in self._columns.items():
                if name.startswith(f"{prefix}.block"):
                    rows[depth < int(name.split(".")[1].removeprefix("block")), column] = INACTIVE
                elif name.startswith(f"{prefix}.") and name != f"{prefix}.depth":
                    rows[depth == 0, column] = INACTIVE
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
            self._stem_latency[index] = self._latency(LayerKey(resolution, IMAGE_CHANNELS, stem))
            stem_states[index] = (multiplier, stem.channels, halve(resolution))
            starts[stem_states[index]] = None
        states = list(starts)
        numbers = {state: number for number, state in enumerate(states)}
        self._first_state = np.zeros(stem_shape, np.int64)
        for index, state in stem_states.items():
            self._first_state[index] = numbers[state]

        self._stages: list[_StageTables] = []
        for number, stage in enumerate(space.stages, start=1):
            tables = _StageTables.of(stage, f"stage{number}", states, space.rounding, self._latency)
            self._stages.append(tables)
            states = tables.states_after

        # Heads, by the state after the last stage.
        shape = (len(states), len(space.heads))
        self._head_width, self._head_latency = np.zeros(shape), np.zeros(shape)
        self._head_cost = np.zeros((*shape, 2))
        for index in np.ndindex(shape):
            multiplier, channels, size = states[index[0]]
            head = space.heads[index[1]].build(space.rounding, multiplier, channels)
            key = LayerKey(size, channels, head, space.classes)
            spent: Cost = layer_cost(key)
            self._head_width[index] = head_width(head, channels)
            self._head_latency[index] = self._latency(key)
            self._head_cost[index] = spent.macs, spent.parameters

    # -- scoring -------------------------------------------------------------------------------

    def score(self, rows: Choices) -> Scores:
        """Scores of (N, P) rows; inactive cells are ignored."""
        parts = [self._score(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
        if not parts:
            return Scores(*(np.zeros(0) for _ in range(6)))
        columns = zip(*parts, strict=True)
        return Scores(*(np.concatenate(column) for column in columns))

    def arrays(self, rows: Choices) -> BlockArrays:
        """What the predictor takes from (N, P) rows."""
        return self._walk(rows)[0]

    def _score(self, rows: Choices) -> tuple[Floats, ...]:
        blocks, latency, layers, head_cost = self._walk(rows)
        if self._predictor is None or self.space.classes != 1000:
            top1, deviation = np.full((2, len(rows)), np.nan)
        else:
            top1, deviation = self._predictor.predict_batch(blocks)
        spent = blocks.stem[:, 1:] + head_cost + blocks.blocks[:, :, _COSTS].sum(0)
        return top1, deviation, latency, layers, spent[:, 0], spent[:, 1]

    def _walk(self, rows: Choices) -> tuple[BlockArrays, Floats, Floats, Floats]:
        space = self.space
        resolution = self._column(rows, "resolution")
        stem = (resolution, self._column(rows, "width_multiplier"), self._column(rows, "stem"))
        state = self._first_state[stem]
        latency = self._stem_latency[stem]
        blocks: list[Floats] = []
        for tables in self._stages:
            state, found = tables.walk(state, {name: self._column(rows, name) for name in tables.names})
            blocks += found
        stacked = np.stack(blocks) if blocks else np.zeros((0, len(rows), len(BLOCK_VALUES) + 1))
        head = (state, self._column(rows, "head"))
        latency = latency + stacked[:, :, -1].sum(0) + self._head_latency[head]
        arrays = BlockArrays(
            np.array(space.resolutions, float)[resolution],
            self._stem_values[stem],
            self._head_width[head],
            stacked[:, :, :-1],
        )
        return arrays, latency, stacked[:, :, 0].sum(0) + 2, self._head_cost[head]


_COSTS = slice(BLOCK_VALUES.index("macs"), BLOCK_VALUES.index("macs") + 2)


@dataclass(frozen=True, slots=True)
class _StageTables:
    """A stage as look-up tables over (state, setting).

    A setting is the mixed-radix number of the parameters that decide a block; cells hold
    ``block_values`` and the latency.
    """

    prefix: str
    depths: NDArray[np.int64] | None  # of a Stage; a CandidateStage has fixed layers
    layers: int
    shared: tuple[str, ...]  # parameters chosen once, after the width
    each: tuple[str, ...]  # parameters chosen for each block
    radices: dict[str, int]
    first: Floats  # (states before, widths, settings, values)
    other: Floats  # (states after, settings, values)
    next_state: Choices  # (states before, widths)
    skip_state: Choices  # (states before,), for depth 0
    states_after: list[_State]

    @property
    def names(self) -> list[str]:
        """The parameters of the stage."""
        blocks = [f"{self.prefix}.block{number}" for number in range(1, self.layers + 1)]
        if self.depths is None:
            return blocks
        per_block = [f"{block}.{name}" for block in blocks for name in self.each]
        return [f"{self.prefix}.{name}" for name in ("depth", "width", *self.shared)] + per_block

    @classmethod
    def of(
        cls,
        stage: Stage | CandidateStage,
        prefix: str,
        states: Sequence[_State],
        rounding: Rounding,
        latency: LayerLatency,
    ) -> _StageTables:
        if isinstance(stage, Stage):
            fields = {name: getattr(stage, plural) for plural, name in BLOCK_FIELDS.items()}
            names = [n for p, n in BLOCK_FIELDS.items() if p not in stage.per_block]
            shared, each = tuple(names), tuple(n for n in fields if n not in names)
            settings = [
                dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())
            ]
            widths, depths, layers = stage.widths, np.array(stage.depths), max(stage.depths)

            def block(setting: int, channels: int, out: int, stride: int) -> Block:
                return stage.block(settings[setting], channels, out, stride, rounding)

        else:
            fields, shared, each, depths = {"": stage.candidates}, (), ("",), None
            settings = [{} for _ in stage.candidates]
            widths, layers = (stage.width,), stage.layers

            def block(setting: int, channels: int, out: int, stride: int) -> Block:
                return stage.candidates[setting].build(channels, out, stride, rounding)

        def cells(channels: int, out: int, stride: int, size: int) -> Iterable[tuple[float, ...]]:
            for setting in range(len(settings)):
                made = block(setting, channels, out, stride)
                time = 0.0 if made.is_identity else latency(LayerKey(size, channels, made))
                yield (*block_values(made, size), time)

        after: dict[_State, int] = {}
        next_state = np.zeros((len(states), len(widths)), np.int64)
        skip_state = np.zeros(len(states), np.int64)
        first = np.zeros((len(states), len(widths), len(settings), len(BLOCK_VALUES) + 1))
        for number, (multiplier, channels, size) in enumerate(states):
            if depths is not None and 0 in depths:
                skip_state[number] = after.setdefault((multiplier, channels, size), len(after))
            if not layers:
                continue
            out_size = halve(size) if stage.stride == 2 else size
            for column, width in enumerate(widths):
                out = rounding.width(width, multiplier)
                next_state[number, column] = after.setdefault((multiplier, out, out_size), len(after))
                first[number, column] = list(cells(channels, out, stage.stride, size))
        other = np.zeros((len(after), len(settings), len(BLOCK_VALUES) + 1))
        if layers > 1:
            for number in sorted(set(next_state.ravel().tolist())):
                _, channels, size = list(after)[number]
                other[number] = list(cells(channels, channels, 1, size))
        radices = {name: len(values) for name, values in fields.items()}
        return cls(
            prefix, depths, layers, shared, each, radices, first, other, next_state, skip_state, list(after)
        )

    def walk(self, state: Choices, columns: Mapping[str, Choices]) -> tuple[Choices, list[Floats]]:
        """States after the stage, and the cells (N, values) of each of its blocks."""
        count = len(state)
        if self.depths is None:
            depth = np.full(count, self.layers)
            width = np.zeros(count, np.int64)
        else:
            depth = self.depths[columns[f"{self.prefix}.depth"]]
            width = columns[f"{self.prefix}.width"]
        after = np.where(depth > 0, self.next_state[state, width], self.skip_state[state])
        found: list[Floats] = []
        for number in range(1, self.layers + 1):
            setting = np.zeros(count, np.int64)
            for name, radix in self.radices.items():
                owner = f"{self.prefix}.block{number}" if name in self.each else self.prefix
                setting = setting * radix + columns[f"{owner}.{name}" if name else owner]
            cells = self.first[state, width, setting] if number == 1 else self.other[after, setting]
            cells[depth < number] = 0
            found.append(cells)
        return after, found
