"""Reading a search space from plain types, strictly.

Every reader raises :class:`SpaceError` with a message that names the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from search_spaces.architecture import check_fields
from search_spaces.blocks import BLOCKS, MAX_CHANNELS, MAX_KERNEL, ArchitectureError, Head, Stem
from search_spaces.errors import InputError
from search_spaces.gate import made
from search_spaces.ops import ACTIVATIONS
from search_spaces.stage import (
    BLOCK_FIELDS,
    CandidateBlock,
    CandidateStage,
    HeadChoice,
    Rounding,
    Stage,
    StemChoice,
)

# Far beyond every space one searches; so that nothing loops for long over a number that a file names.
MAX_ENTRIES = 64
MAX_DEPTH_OF_STAGE = 64
MAX_FACTOR = 64.0
MAX_DIVISOR = 1_024
MAX_NAME = 100

_T = TypeVar("_T")
_V = TypeVar("_V", bool, int, float, str)


class SpaceError(InputError):
    """A description that is no search space. The message names the field."""


def read_fields(where: str, cls: type, data: object) -> dict[str, object]:
    """The entries of a mapping whose keys are fields of ``cls``; unknown and missing ones are refused."""
    try:
        return dict(check_fields(where, cls, data))
    except ArchitectureError as error:
        raise SpaceError(str(error)) from None


def read_list(where: str, data: object, read: Callable[[str, object], _T]) -> tuple[_T, ...]:
    """Every entry of a list that is not empty, read by ``read``.

    Args:
        where: the field, for messages.
        data: as the file has it.
        read: reads one entry, of its place and value.
    """
    if not isinstance(data, list | tuple) or not 0 < len(data) <= MAX_ENTRIES:
        raise SpaceError(f"{where}: expected a list with at least one entry, at most {MAX_ENTRIES}")
    return tuple(read(f"{where}: entry {number}", entry) for number, entry in enumerate(data, start=1))


def scalar(
    where: str,
    value: object,
    kind: type[_V],
    minimum: float | None = None,
    maximum: float = MAX_CHANNELS,
) -> _V:
    """One value of the given type; integers are accepted where floats are wanted.

    Args:
        where: the field, for messages.
        value: as the file has it.
        kind: the type.
        minimum: least that is allowed, None for any.
        maximum: most that is allowed.
    """
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise SpaceError(f"{where}: expected {kind.__name__}, not {value!r}")
    if isinstance(value, str) and len(value) > MAX_NAME:
        raise SpaceError(f"{where} must be a text of at most {MAX_NAME} characters")
    if minimum is not None and not (isinstance(value, int | float) and value >= minimum):
        raise SpaceError(f"{where}: must be at least {minimum:g}, not {value!r}")
    if minimum is not None and isinstance(value, int | float) and value > maximum:
        raise SpaceError(f"{where}: must be at most {maximum:g}, not {value!r}")
    return value


def candidates_of(
    where: str,
    data: object,
    kind: type[_V],
    minimum: float | None = None,
    maximum: float = MAX_CHANNELS,
) -> tuple[_V, ...]:
    """Distinct values of one type, at least one.

    Args:
        where: the field, for messages.
        data: as the file has it.
        kind: the type.
        minimum: least that is allowed, None for any.
        maximum: most that is allowed.
    """
    if not isinstance(data, list | tuple) or not 0 < len(data) <= MAX_ENTRIES:
        raise SpaceError(f"{where}: expected a list of candidates, at most {MAX_ENTRIES}, not {data!r}")
    values = tuple(scalar(where, value, kind, minimum, maximum) for value in data)
    if len(set(values)) < len(values):
        raise SpaceError(f"{where}: a candidate is listed twice in {list(values)}")
    return values


def _kernel_sides(where: str, data: object) -> tuple[int, ...]:
    kernels = candidates_of(where, data, int, minimum=0, maximum=MAX_KERNEL)
    if any(kernel and kernel % 2 == 0 for kernel in kernels):
        raise SpaceError(f"{where}: kernels must be odd, not {list(kernels)}")
    return kernels


def _member_of(where: str, data: object, choices: tuple[str, ...]) -> tuple[str, ...]:
    values = candidates_of(where, data, str)
    for value in values:
        if value not in choices:
            raise SpaceError(f"{where}: {value!r} is not one of {', '.join(choices)}")
    return values


def _stride(where: str, value: object) -> int:
    if type(value) is not int or value not in (1, 2):
        raise SpaceError(f"{where}: stride must be 1 or 2, not {value!r}")
    return value


def read_rounding(data: object) -> Rounding:
    """The field ``rounding``."""
    where = "search space: rounding"
    values = read_fields(where, Rounding, data)
    for name in ("channel_divisor", "expansion_divisor"):
        if name in values:
            scalar(f"{where}: {name}", values[name], int, minimum=1, maximum=MAX_DIVISOR)
    if "expansion_conv_at_one" in values:
        scalar(f"{where}: expansion_conv_at_one", values["expansion_conv_at_one"], bool)
    return made(Rounding, values)


def read_stem(where: str, data: object) -> StemChoice:
    """One entry of ``stems``."""
    choice = made(StemChoice, read_fields(where, StemChoice, data))
    try:
        Stem(choice.channels, choice.activation, choice.kernel)
    except ArchitectureError as error:
        raise SpaceError(f"{where}: {error}") from None
    return choice


def read_head(where: str, data: object) -> HeadChoice:
    """One entry of ``heads``."""
    choice = made(HeadChoice, read_fields(where, HeadChoice, data))
    scalar(f"{where}: conv_ratio", choice.conv_ratio, float, minimum=0, maximum=MAX_FACTOR)
    if choice.conv_ratio and choice.conv_channels:
        raise SpaceError(f"{where}: give conv_channels or conv_ratio, not both")
    try:
        Head(choice.conv_channels, choice.hidden_channels, choice.activation, hidden_norm=choice.hidden_norm)
    except ArchitectureError as error:
        raise SpaceError(f"{where}: {error}") from None
    return choice


def read_stage(where: str, data: object) -> Stage | CandidateStage:
    """One entry of ``stages``: a list of whole candidates, or lists of candidate values."""
    if isinstance(data, Mapping) and "candidates" in data:
        return _read_candidate_stage(where, data)
    kinds = tuple(name for name, kind in BLOCKS.items() if not kind.bare)
    if isinstance(data, Mapping) and "kind" in data:
        # One for all blocks, as most stages have it.
        if "kinds" in data:
            raise SpaceError(f"{where}: give kind or kinds, not both")
        if data["kind"] not in kinds:
            raise SpaceError(f"{where}: kind must be one of {', '.join(kinds)}, not {data['kind']!r}")
        data = {("kinds" if name == "kind" else name): value for name, value in data.items()}
        data["kinds"] = [data["kinds"]]
    values = read_fields(where, Stage, data)
    readers: dict[str, Callable[[str, object], tuple[object, ...]]] = {
        "depths": lambda at, each: candidates_of(at, each, int, 0, MAX_DEPTH_OF_STAGE),
        "widths": lambda at, each: candidates_of(at, each, int, minimum=1),
        "kinds": lambda at, each: _member_of(at, each, kinds),
        "start_kernels": _kernel_sides,
        "kernels": _kernel_sides,
        "expansions": lambda at, each: candidates_of(at, each, float, 0.1, MAX_FACTOR),
        "se": lambda at, each: candidates_of(at, each, bool),
        "activations": lambda at, each: _member_of(at, each, ACTIVATIONS),
        "per_block": lambda at, each: _member_of(at, each, tuple(BLOCK_FIELDS)) if each else (),
    }
    for name, read in readers.items():
        if name in values:
            values[name] = read(f"{where}: {name}", values[name])
    _stride(where, values["stride"])
    stage = made(Stage, values)
    if "depthwise_separable" in stage.kinds and stage.expansions != (1.0,):
        raise SpaceError(f"{where}: a depthwise_separable stage needs expansions: [1]")
    universal = [BLOCKS[kind].universal for kind in stage.kinds]
    if 0 in stage.kernels and not all(universal):
        raise SpaceError(
            f"{where}: kernels: must be at least 1; only universal_inverted_bottleneck goes without one (0)"
        )
    if stage.start_kernels != (0,) and not any(universal):
        raise SpaceError(f"{where}: start_kernels: only universal_inverted_bottleneck has them")
    return stage


def _read_candidate_stage(where: str, data: object) -> CandidateStage:
    values = read_fields(where, CandidateStage, data)
    _stride(where, values["stride"])
    scalar(f"{where}: width", values["width"], int, minimum=1)
    scalar(f"{where}: layers", values["layers"], int, minimum=1, maximum=MAX_DEPTH_OF_STAGE)
    candidates = read_list(f"{where}: candidates", values["candidates"], _read_candidate)
    labels = [candidate.label for candidate in candidates]
    if len(set(labels)) < len(labels):
        raise SpaceError(f"{where}: two candidates are called the same in {labels}")
    return made(CandidateStage, {**values, "candidates": candidates})


def _read_candidate(where: str, data: object) -> CandidateBlock:
    values = read_fields(where, CandidateBlock, data)
    if "expansion" in values:
        values["expansion"] = scalar(f"{where}: expansion", values["expansion"], float, 0.1, MAX_FACTOR)
    if "name" in values:
        scalar(f"{where}: name", values["name"], str)
    kinds = (*(name for name, kind in BLOCKS.items() if not kind.bare), "skip")
    if values.get("kind", "skip") not in kinds:
        raise SpaceError(f"{where}: kind must be one of {', '.join(kinds)}, not {values['kind']!r}")
    candidate = made(CandidateBlock, values)
    try:
        candidate.build(16, 16, 1, Rounding())
    except ArchitectureError as error:
        raise SpaceError(f"{where}: {error}") from None
    return candidate
