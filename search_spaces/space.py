"""A search space: rows of candidate values that generalise the MobileNet tables.

A space is a YAML document. Its stages are of two kinds: a :class:`Stage` lists candidate depths,
widths, kernels, expansions, SE and activations (MnasNet, MobileNetV3); a :class:`CandidateStage`
lists whole candidate blocks for every layer (ProxylessNAS, FBNet, NAS-Bench-Macro).

Every operation goes through one traversal, :meth:`SearchSpace.compose`, which asks a *chooser* for
the value of each parameter it meets. A parameter with one candidate is no parameter, and parameters
of blocks that do not exist are never asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from search_spaces.architecture import MAX_CLASSES, MAX_RESOLUTION, Architecture
from search_spaces.blocks import MAX_CHANNELS, SQUARE, Block, Head, Stem, is_oblong
from search_spaces.errors import InputError
from search_spaces.gate import MAX_YAML_BYTES, Gate, made
from search_spaces.ops import halve
from search_spaces.schema import (
    MAX_FACTOR,
    SpaceError,
    candidates_of,
    read_fields,
    read_head,
    read_list,
    read_rounding,
    read_stage,
    read_stem,
    scalar,
)
from search_spaces.stage import (
    CandidateBlock,
    CandidateStage,
    Chooser,
    HeadChoice,
    Parameters,
    Rounding,
    Stage,
    StemChoice,
    Value,
    reach,
    states_after,
)

# Layers that a walk over all members may look at: some seconds of work, fifteen times our largest space.
_MAX_VISITS = 1_000_000


# Fields that came later are left out where they say nothing: older spaces are written as they were.
_LATER_FIELDS: dict[str, object] = {"start_kernels": [0], "start_kernel": 0, "hidden_norm": False}


class NotInSpaceError(InputError):
    """An architecture, or a set of parameters, that the space does not contain."""


class SuggestsCategorical(Protocol):
    """The part of an Optuna trial that a space needs."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value | None:
        """Choose one of ``choices``."""


@dataclass(frozen=True, slots=True)
class ReachableParts:
    """Everything a member of a space can be made of, each part with the side of its input."""

    stems: frozenset[tuple[int, Stem]]
    blocks: frozenset[tuple[int, Block]]
    heads: frozenset[tuple[int, int, Head]]  # (size, in_channels, head)


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """A set of architectures, described by the candidates of each parameter.

    Attributes:
        name: what reports call it.
        resolutions: sides of the input image in pixels.
        stems: candidate stems.
        stages: candidate stages, in order.
        heads: candidate heads.
        width_multipliers: factors on all widths at once.
        rounding: how channels are rounded.
        classes: number of classes.
    """

    name: str
    resolutions: tuple[int, ...]
    stems: tuple[StemChoice, ...]
    stages: tuple[Stage | CandidateStage, ...]
    heads: tuple[HeadChoice, ...]
    width_multipliers: tuple[float, ...] = (1.0,)
    rounding: Rounding = field(default_factory=Rounding)
    classes: int = 1000

    # -- reading and writing -------------------------------------------------------------------

    @classmethod
    def from_dict(cls, data: object) -> SearchSpace:
        """Build a space from plain types, as read from YAML.

        Raises:
            SpaceError: on an unknown or missing field or a wrong value, naming it.
        """
        where = "search space"
        values = read_fields(where, cls, data)
        values["stems"] = read_list(f"{where}: stems", values["stems"], read_stem)
        values["heads"] = read_list(f"{where}: heads", values["heads"], read_head)
        values["stages"] = read_list(f"{where}: stages", values["stages"], read_stage)
        offered = values["resolutions"]
        # Two numbers in a list are two choices; a list within it is a height and a width.
        for each in offered if isinstance(offered, list | tuple) else [offered]:
            if is_oblong(each):
                raise SpaceError(f"{where}: resolutions: {each!r}: {SQUARE}")
        values["resolutions"] = candidates_of(
            f"{where}: resolutions", values["resolutions"], int, 8, MAX_RESOLUTION
        )
        if not scalar(f"{where}: name", values["name"], str):
            raise SpaceError(f"{where}: name must be a text")
        if "width_multipliers" in values:
            values["width_multipliers"] = candidates_of(
                f"{where}: width_multipliers", values["width_multipliers"], float, 0.01, MAX_FACTOR
            )
        if "rounding" in values:
            values["rounding"] = read_rounding(values["rounding"])
        if "classes" in values:
            scalar(f"{where}: classes", values["classes"], int, 1, MAX_CLASSES)
        space = made(cls, values)
        space._check_extent()
        return space

    @classmethod
    def from_yaml(cls, path: Path) -> SearchSpace:
        """Read a space from a file.

        Raises:
            SpaceError: if the file is missing, no YAML, or no space; the message names the file.
        """
        gate = Gate(str(path), SpaceError)
        data = gate.yaml(gate.text(path, MAX_YAML_BYTES))
        try:
            return cls.from_dict(data)
        except SpaceError as error:
            raise SpaceError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, object]:
        """Plain types only; the inverse of :meth:`from_dict`."""
        stages = [_stage_fields(stage) for stage in self.stages]
        return {**_fields(self), "stages": stages, "heads": [_fields(head) for head in self.heads]}

    def restricted(self, resolutions: Iterable[int] | None = None, classes: int | None = None) -> SearchSpace:
        """The same space for a dataset with other resolutions or classes."""
        return replace(
            self,
            resolutions=tuple(resolutions) if resolutions is not None else self.resolutions,
            classes=classes if classes is not None else self.classes,
        )

    def _check_extent(self) -> None:
        """Refuse a space whose widest layer nobody can build, or whose layers nobody can count."""
        factor = max(self.width_multipliers)
        widest = max(choice.channels for choice in self.stems) * factor
        for stage in self.stages:
            expansion = max(stage.ratios)
            widest = max(widest, max(stage.widths) * factor)
            if 1.2 * widest * max(1.0, expansion) > MAX_CHANNELS:
                raise SpaceError(
                    f"search space: {widest:g} channels expanded {expansion:g} times are more than "
                    f"{MAX_CHANNELS:,} channels"
                )
        for choice in self.heads:
            if 1.2 * max(widest * choice.conv_ratio, choice.conv_channels * factor) > MAX_CHANNELS:
                raise SpaceError(
                    f"search space: the head {choice.label} has more than {MAX_CHANNELS:,} channels"
                )
        visits = 0
        for resolution in self.resolutions:
            for multiplier in self.width_multipliers:
                states = {
                    (stem.build(self.rounding, multiplier).channels, halve(resolution)) for stem in self.stems
                }
                for stage in self.stages:
                    each = 2 * len(stage.widths) * stage.variety if max(stage.depths) else 0
                    visits += len(states) * each
                    if visits > _MAX_VISITS:
                        raise SpaceError(
                            f"search space: more than {_MAX_VISITS:,} different layers: give fewer candidates"
                        )
                    states = states_after(stage, states, self.rounding, multiplier)

    # -- the parameters ------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of parameter settings (networks reached in two ways count twice)."""
        total = len(self.resolutions) * len(self.width_multipliers) * len(self.stems) * len(self.heads)
        for stage in self.stages:
            total *= stage.size
        return total

    def parameters(self) -> dict[str, tuple[Value, ...]]:
        """Every parameter with its candidates, in the order in which they are asked for."""
        found: dict[str, tuple[Value, ...]] = {
            "resolution": self.resolutions,
            "width_multiplier": self.width_multipliers,
            "stem": tuple(stem.label for stem in self.stems),
        }
        for number, stage in enumerate(self.stages, start=1):
            found |= stage.parameters(f"stage{number}")
        found["head"] = tuple(head.label for head in self.heads)
        return {name: choices for name, choices in found.items() if len(choices) > 1}

    def compose(self, choose: Chooser) -> Architecture:
        """The architecture that a chooser's answers describe: the one traversal of the space."""

        def ask(name: str, choices: tuple[Value, ...]) -> Value:
            return choices[0] if len(choices) == 1 else choose(name, choices)

        resolution = int(ask("resolution", self.resolutions))
        multiplier = float(ask("width_multiplier", self.width_multipliers))
        stems = {stem.label: stem for stem in self.stems}
        stem = stems[str(ask("stem", tuple(stems)))].build(self.rounding, multiplier)
        channels = stem.channels
        blocks: list[Block] = []
        for number, stage in enumerate(self.stages, start=1):
            blocks += stage.compose(ask, f"stage{number}", channels, self.rounding, multiplier)
            channels = blocks[-1].out_channels if blocks else channels
        heads = {head.label: head for head in self.heads}
        head = heads[str(ask("head", tuple(heads)))].build(self.rounding, multiplier, channels)
        return Architecture(resolution, stem, tuple(blocks), head, self.classes)

    def build(self, parameters: Mapping[str, Value]) -> Architecture:
        """The architecture of given parameters; superfluous (inactive) ones are ignored.

        Raises:
            NotInSpaceError: if a parameter is missing or has a value that is no candidate.
        """

        def choose(name: str, choices: tuple[Value, ...]) -> Value:
            if name not in parameters:
                raise NotInSpaceError(f"parameter {name!r} is missing")
            if parameters[name] not in choices:
                raise NotInSpaceError(f"{name}: {parameters[name]!r} is not among {list(choices)}")
            return parameters[name]

        return self.compose(choose)

    def suggest(self, trial: SuggestsCategorical) -> Architecture:
        """The architecture an Optuna trial proposes."""

        def choose(name: str, choices: tuple[Value, ...]) -> Value:
            value = trial.suggest_categorical(name, choices)
            assert value is not None  # Optuna's choices may be, ours are not
            return value

        return self.compose(choose)

    def sample(self, generator: random.Random) -> Architecture:
        """A member, each parameter drawn uniformly."""
        return self.compose(lambda _, choices: generator.choice(choices))

    def members(self) -> Iterator[tuple[Parameters, Architecture]]:
        """Every setting of the parameters with its architecture, in a fixed order."""
        path: list[int] = []
        while True:
            counts: list[int] = []
            chosen: Parameters = {}

            def choose(
                name: str,
                choices: tuple[Value, ...],
                counts: list[int] = counts,
                chosen: Parameters = chosen,
            ) -> Value:
                if len(counts) == len(path):
                    path.append(0)
                value = choices[path[len(counts)]]
                counts.append(len(choices))
                chosen[name] = value
                return value

            architecture = self.compose(choose)
            yield chosen, architecture
            while path and path[-1] == counts[len(path) - 1] - 1:
                path.pop()
            if not path:
                return
            path[-1] += 1

    # -- the inverse ---------------------------------------------------------------------------

    def encode(self, architecture: Architecture) -> Parameters:
        """The parameters of a member; of several equal settings the first in candidate order.

        Raises:
            NotInSpaceError: if the space does not contain the architecture, saying what it lacks.
        """
        if architecture.classes != self.classes:
            raise NotInSpaceError(
                f"the space {self.name!r} has {self.classes} classes, not {architecture.classes}"
            )
        if architecture.resolution not in self.resolutions:
            raise NotInSpaceError(
                f"the space {self.name!r} has resolutions {list(self.resolutions)}, "
                f"not {architecture.resolution}"
            )
        furthest = 0
        for multiplier in self.width_multipliers:
            for stem in self.stems:
                if stem.build(self.rounding, multiplier) != architecture.stem:
                    continue
                found, reached = self._encode_stages(architecture, multiplier)
                furthest = max(furthest, reached)
                if found is not None:
                    fixed: Parameters = {
                        "resolution": architecture.resolution,
                        "width_multiplier": multiplier,
                        "stem": stem.label,
                    }
                    encoded = fixed | found
                    return {name: encoded[name] for name in self.parameters() if name in encoded}
        raise NotInSpaceError(
            f"the space {self.name!r} does not contain this architecture"
            + (f": no match beyond row {furthest}" if furthest else ": no such stem")
        )

    def _encode_stages(self, architecture: Architecture, multiplier: float) -> tuple[Parameters | None, int]:
        blocks = architecture.blocks
        furthest = 0

        def search(index: int, start: int) -> Parameters | None:
            nonlocal furthest
            furthest = max(furthest, start)
            channels = blocks[start - 1].out_channels if start else architecture.stem.channels
            if index == len(self.stages):
                if start < len(blocks):
                    return None
                for head in self.heads:
                    if head.build(self.rounding, multiplier, channels) == architecture.head:
                        return {"head": head.label}
                return None
            ways = self.stages[index].encodings(
                blocks[start:], f"stage{index + 1}", channels, self.rounding, multiplier
            )
            for taken, parameters in ways:
                rest = search(index + 1, start + taken)
                if rest is not None:
                    return parameters | rest
            return None

        return search(0, 0), furthest

    # -- what members are made of --------------------------------------------------------------

    def reachable(self) -> ReachableParts:
        """Every stem, block and head that some member contains, with the side of its input."""
        stems: set[tuple[int, Stem]] = set()
        blocks: set[tuple[int, Block]] = set()
        heads: set[tuple[int, int, Head]] = set()
        for resolution in self.resolutions:
            for multiplier in self.width_multipliers:
                built = {stem.build(self.rounding, multiplier) for stem in self.stems}
                stems |= {(resolution, stem) for stem in built}
                states = {(stem.channels, halve(resolution)) for stem in built}
                for stage in self.stages:
                    blocks |= reach(stage, states, self.rounding, multiplier)
                    states = states_after(stage, states, self.rounding, multiplier)
                heads |= {
                    (size, channels, head.build(self.rounding, multiplier, channels))
                    for channels, size in states
                    for head in self.heads
                }
        return ReachableParts(frozenset(stems), frozenset(blocks), frozenset(heads))


def _fields(part: SearchSpace | Stage | CandidateStage | CandidateBlock | HeadChoice) -> dict[str, object]:
    plain = {name: _listed(value) for name, value in asdict(part).items()}
    return {name: value for name, value in plain.items() if _LATER_FIELDS.get(name, plain) != value}


def _listed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _stage_fields(stage: Stage | CandidateStage) -> dict[str, object]:
    found = _fields(stage)
    if isinstance(stage, CandidateStage):
        found["candidates"] = [_fields(each) for each in stage.candidates]
    elif len(stage.kinds) == 1:
        (found["kind"],) = stage.kinds
        del found["kinds"]
    return found
