"""The portable kit: what a board needs to measure layers without PyTorch, and what it sends back.

A kit is one zip file that Python runs as it is (``python3 rpi4-kit.zip``; see :mod:`nas.measuring.board`).
Its graphs come without weights, which the board makes from a seed: a layer takes about a kilobyte.
A result file is JSON lines: a header, the journal of each group of subjects, and a last line that
says how many groups there are.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas import disk, ending
from nas.cost import layer_cost
from nas.devices.device import ANCHOR, REFUSED, Measurement, deal_out, measurement, subject_name
from nas.measuring import board, conditions, energy, models, rounds
from nas.measuring.progress import ProfileProgress
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import CannotRunError, Subject
from nas.saving import check_output, write_atomically
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import Gate, JsonObject
from search_spaces.layers import LayerKey
from search_spaces.tasks import TaskNetwork

# Groups are measured one after the other: what a board with 1 GB of memory holds at once.
GROUP_SUBJECTS = 300
_MOST_GROUPS = 1_000
_MOST_SUBJECTS = 20_000
# Layers that all groups share, beyond their size.
_LINKS = 20
DEFAULT_TEMPERATURE_LIMIT_C = 75.0
_MODULES = {
    "disk.py": disk,
    "ending.py": ending,
    "measuring/conditions.py": conditions,
    "measuring/energy.py": energy,
    "measuring/models.py": models,
    "measuring/rounds.py": rounds,
    "measuring/board.py": board,
}


# Read by any Python 3: the other files are not.
_MAIN = """import sys

if sys.version_info < (3, 9):
    sys.exit("error: this kit needs Python 3.9 or newer, this is %d.%d" % sys.version_info[:2])
from nas.measuring.board import main

main()
"""


class ResultError(InputError):
    """A result file that cannot be used."""


@dataclass(frozen=True, slots=True)
class KitSettings:
    """The settings a kit is measured by.

    Attributes:
        hardware: name of the hardware config.
        runtime: with precision and threads.
        rounds: steady rounds wanted.
        seed: of weights, inputs and the shuffled order.
        temperature_limit_c: no round begins above this temperature.
        affinity: numbers of the cores to measure on; none: all.
        precise: subjects that stand for themselves (see :class:`nas.measuring.rounds.Schedule`).
    """

    hardware: str
    runtime: Runtime
    rounds: int
    seed: int = 0
    temperature_limit_c: float = DEFAULT_TEMPERATURE_LIMIT_C
    affinity: tuple[int, ...] = ()
    precise: tuple[Subject, ...] = ()


def groups_of(subjects: Sequence[Subject], size: int = GROUP_SUBJECTS) -> list[list[Subject]]:
    """Deal subjects out into groups of at most ``size``, which a board can hold.

    Where there are several, some layers of the first group, spread from the cheapest to the dearest, are
    measured in every other group too: they tell how fast the board was then
    (:func:`nas.latency.sessions.table_level`).
    """
    if len(subjects) <= size:
        return [list(subjects)]
    room = max(size - _LINKS, (size + 1) // 2)
    first, *others = deal_out(subjects, room)
    layers = [subject for subject in first if isinstance(subject, LayerKey)]
    layers.sort(key=lambda key: (layer_cost(key).macs, str(key)))
    wanted = size - room
    links = layers[:: max(1, len(layers) // max(1, wanted))][:wanted]
    return [first, *([*group, *links] for group in others)]


def check_kit(path: Path, setting: str) -> None:
    """Refuse what is no place for a kit before it is made; a kit of before is replaced, nothing else.

    Args:
        path: of the kit.
        setting: that names it, for the message.

    Raises:
        SaveError: if it is a folder, another file, or cannot be written.
    """
    check_output(path, setting, overwrite=_is_kit(path))


def _is_kit(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as opened:
            return board.MANIFEST in opened.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def write_kit(
    path: Path,
    settings: KitSettings,
    groups: Sequence[Sequence[Subject]],
    on_prepared: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Write a kit.

    Args:
        path: the zip file.
        settings: how to measure.
        groups: layers and networks that take turns with each other.
        on_prepared: called with (subjects written, subjects in all).

    Returns:
        The kit's identity, which its result carries.

    Raises:
        SaveError: if the file cannot be written.
        nas.runtimes.subject.RuntimeUnavailableError: if the runtime is not installed, or not one for boards.
    """
    settings.runtime.model(ANCHOR)  # a runtime that boards lack is refused before anything is written
    subjects = {subject_name(subject): subject for group in groups for subject in (*group, ANCHOR)}
    described: dict[str, object] = {}
    manifest = {
        "hardware": settings.hardware,
        "runtime": settings.runtime.name,
        "precision": settings.runtime.precision,
        "threads": settings.runtime.threads,
        "protocol": models.PROTOCOL,
        "rounds": settings.rounds,
        "seed": settings.seed,
        "temperature_limit_c": settings.temperature_limit_c,
        "affinity": list(settings.affinity),
        "anchor": subject_name(ANCHOR),
        "precise": [subject_name(each) for each in settings.precise],
        "groups": [[subject_name(subject) for subject in group] for group in groups],
        "networks": {
            name: subject.to_dict() for name, subject in subjects.items() if not isinstance(subject, LayerKey)
        },
    }
    manifest["kit"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:12]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as kit:
        for number, (name, subject) in enumerate(subjects.items()):
            on_prepared(number + 1, len(subjects))
            try:
                model = settings.runtime.model(subject)
            except CannotRunError as error:
                described[name] = {"refused": error.reason}  # the board says so in its result
                continue
            weights = [
                {"name": each, "shape": list(values.shape), "type": str(values.dtype)}
                for each, values in model.weights.items()
            ]
            graph = f"graphs/{number:05}"
            described[name] = {"graph": graph, "weights": weights}
            kit.writestr(graph, model.skeleton)
        kit.writestr(board.MANIFEST, json.dumps(manifest | {"subjects": described}))
        for package in ("nas", "nas/measuring"):
            kit.writestr(f"{package}/__init__.py", "")
        for name, module in _MODULES.items():
            assert module.__file__
            kit.write(module.__file__, f"nas/{name}")
        kit.writestr("__main__.py", _MAIN)
    write_atomically(path, content.getvalue())
    return str(manifest["kit"])


@dataclass(frozen=True, slots=True)
class Group:
    """The measurements of one group of subjects on a board.

    Attributes:
        number: of the group in its kit, from 0.
        measurement: the samples.
        journal: the lines of the board's own journal.
    """

    number: int
    measurement: Measurement
    journal: str


@dataclass(frozen=True, slots=True)
class ResultHeader:
    """The first line of a result: the kit's settings and the board.

    Attributes:
        kit: identity of the kit.
        hardware: name of the hardware config.
        runtime: its name.
        precision: ``fp32`` or ``int8``.
        threads: within an operator.
        rounds: that were wanted of each group.
        groups: how many the kit has.
        protocol: how layers were timed, see :data:`nas.measuring.models.PROTOCOL`.
        networks: those among the subjects, by name, as their ``to_dict`` gave them.
        board: as it described itself.
    """

    kit: str
    hardware: str
    runtime: str
    precision: str
    threads: int
    rounds: int
    groups: int
    protocol: int
    networks: JsonObject
    board: JsonObject

    @classmethod
    def read(cls, gate: Gate, data: JsonObject) -> ResultHeader:
        """A header from plain values.

        Raises:
            InputError: of the gate's kind, if something is missing or no such thing.
        """
        texts = {
            name: gate.string(name, data[name], 100) for name in ("kit", "hardware", "runtime", "precision")
        }
        described = gate.mapping(data["board"], "board")
        # Kits made when boards ran ONNX Runtime only say so in another word.
        described.setdefault("runtime_version", described.get("onnxruntime"))
        for name in ("cpu", "runtime_version"):
            gate.string(name, described[name], 200)
        return cls(
            **texts,
            threads=gate.integer("threads", data["threads"], 1, 1024),
            rounds=gate.integer("rounds", data["rounds"], 1, 1_000_000),
            groups=gate.integer("groups", data["groups"], 1, _MOST_GROUPS),
            protocol=gate.integer("protocol", data.get("protocol", 1)),
            networks=gate.mapping(data["networks"], "networks"),
            board=described,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The measurements of a board.

    Attributes:
        header: the kit's settings, and the board as it described itself.
        groups: what can be used.
        problems: one line for each thing that is missing or cannot be used.
    """

    header: ResultHeader
    groups: tuple[Group, ...]
    problems: tuple[str, ...]

    @property
    def device(self) -> str:
        """The board's own name."""
        return str(self.header.board["cpu"])

    @property
    def runtime_version(self) -> str:
        """Version of the runtime on the board."""
        return str(self.header.board["runtime_version"])


@dataclass(frozen=True, slots=True)
class MeasuredTarget:
    """A board's measurements in its place: they give what was asked of its kit and nothing else."""

    result: Result

    def identity(self) -> tuple[str, str]:
        """See :class:`nas.devices.device.Target`."""
        return self.result.device, self.result.runtime_version

    @property
    def session_subjects(self) -> int:
        """The number of subjects the result holds."""
        return sum(len(each.measurement.subjects) for each in self.result.groups)

    def measure(
        self,
        subjects: Sequence[Subject],
        rounds: int,
        journal: Path,
        progress: ProfileProgress = ProfileProgress(),
        precise: Sequence[Subject] = (),
    ) -> Measurement:
        """The measurement of these subjects.

        Raises:
            ResultError: if the board measured others.
        """
        wanted = {subject_name(each) for each in subjects}
        for group in self.result.groups:
            found = group.measurement
            if {subject_name(each) for each in found.subjects} | found.refused.keys() == wanted:
                return found
        raise ResultError(
            "the result is of another kit than the one these settings and this table make: make a new one"
        )


def read_result(path: Path, hardware: str, runtime: Runtime) -> Result:
    """Read a result file; groups that are whole are used even if others are missing.

    Args:
        path: the file.
        hardware: name of the hardware config it must be for.
        runtime: precision and threads it must be for.

    Raises:
        ResultError: if it is no result, of another kit, or nothing in it can be used.
    """
    text = Gate(str(path), ResultError).text(path)
    return parse_result(text, str(path), hardware, runtime)


def parse_result(text: str, where: str, hardware: str, runtime: Runtime) -> Result:
    """Read the text of a result file, as :func:`read_result`.

    Args:
        text: of the file.
        where: its name, for messages.
        hardware: name of the hardware config it must be for.
        runtime: precision and threads it must be for.
    """
    gate = Gate(where, ResultError)
    lines = text[: text.rfind("\n") + 1].split("\n")[:-1]
    try:
        first, *rest = (gate.mapping(gate.json(line)) for line in lines)
        schema = first["result"]
    except (ValueError, LookupError, TypeError):
        raise ResultError(f"{where} is no result file of a kit, or is damaged") from None
    if schema != board.RESULT_SCHEMA:
        raise ResultError(f"{where} is of result schema {schema}, this program reads {board.RESULT_SCHEMA}")
    with gate.reading():
        header = ResultHeader.read(gate, first)
        _check_kit(header, where, hardware, runtime)
        groups, problems = [], []
        seen: set[int] = set()
        for journal in _journals(gate, rest, header.kit):
            group, number = journal.rounds, journal.group
            subjects = [_subject(name, header.networks) for name in journal.names]
            if number in seen or len(set(journal.names)) < len(journal.names):
                gate.fail(f"is damaged: group {number + 1} holds something twice")
            seen.add(number)
            label = f"group {number + 1}"
            steady = rounds.steady(group)
            if len(steady) < (header.rounds + 1) // 2:
                throttled = sum(map(rounds.is_throttled, group))
                problems.append(
                    f"{label}: {len(steady)} usable rounds of {header.rounds} wanted "
                    f"({throttled} of {len(group)} were throttled)"
                )
                continue
            measured = _measurement(subjects, steady, group, header, number, journal.refused)
            lines_of_group = [journal.header, *(each.__dict__ for each in group)]
            text_of_group = "".join(json.dumps(line) + "\n" for line in lines_of_group)
            groups.append(Group(number, measured, text_of_group))
        missing = header.groups - len(groups) - len(problems)
        if missing > 0:
            problems.append(f"{missing} of {header.groups} groups are missing")
    if not groups:
        raise ResultError(
            f"nothing in {where} can be used: {'; '.join(problems)}; run the kit again on the board to go on"
        )
    return Result(header, tuple(groups), tuple(problems))


def _check_kit(header: ResultHeader, where: str, hardware: str, runtime: Runtime) -> None:
    made_for = (header.hardware, header.runtime, header.precision, header.threads)
    wanted = (hardware, runtime.name, runtime.precision, runtime.threads)
    if made_for != wanted:
        raise ResultError(
            f"{where} comes from another kit: it is for {_listed(made_for)}, not for {_listed(wanted)}"
        )
    if header.protocol != models.PROTOCOL:
        raise ResultError(
            f"{where} is of a kit that timed layers in another way, made by another version of this program: "
            "make a new kit"
        )


def _listed(settings: tuple[str, str, str, int]) -> str:
    hardware, runtime, precision, threads = settings
    return f"hardware={hardware}, {runtime}, {precision}, {threads} thread{'s' if threads != 1 else ''}"


@dataclass(frozen=True, slots=True)
class _Journal:
    """A board's journal of one group: its first line, and what that says, and its rounds."""

    header: JsonObject
    group: int
    names: list[str]
    rounds: list[rounds.Round]
    refused: dict[str, str]


def _journals(gate: Gate, lines: Sequence[JsonObject], kit: str) -> list[_Journal]:
    found: list[_Journal] = []
    for line in lines:
        if "names" in line:
            identity = gate.mapping(line["identity"], "identity")
            if identity["kit"] != kit:
                raise ResultError(f"the result mixes kits {kit} and {identity['kit']}")
            group = gate.integer("the number of a group", identity["group"], 0, _MOST_GROUPS)
            names = gate.sequence(line["names"], "names", _MOST_SUBJECTS)
            reasons = gate.mapping(line.get(REFUSED, {}), REFUSED)
            refused = {name: gate.string("a reason", each, 1_000) for name, each in reasons.items()}
            read = [gate.string("a name", name, 200) for name in names]
            found.append(_Journal(line, group, read, [], refused))
        elif "samples_ms" in line:
            journal = found[-1]
            journal.rounds.append(rounds.read_round(line, len(journal.names)))
    return found


def _subject(name: str, networks: JsonObject) -> Subject:
    described = networks.get(name)
    if described is None:
        return LayerKey.parse(name)
    of_task = isinstance(described, dict) and "task" in described
    return (TaskNetwork if of_task else Architecture).from_dict(described)


def _measurement(
    subjects: Sequence[Subject],
    steady: Sequence[rounds.Round],
    measured: Sequence[rounds.Round],
    header: ResultHeader,
    group: int,
    refused: dict[str, str],
) -> Measurement:
    plain = [
        rounds.Round(
            each.samples_ms,
            each.anchor_ms,
            {name: value for name, value in each.conditions.items() if not isinstance(value, list)},
        )
        for each in measured
    ]
    throttled = sum(map(rounds.is_throttled, measured))
    described = {"kit": header.kit, "group": group, **header.board, "throttled_rounds": throttled}
    if refused:
        described[REFUSED] = {**refused}
    return measurement(subjects, steady, plain, described)


def slowness(measured: Sequence[Measurement], names: Sequence[str]) -> list[float]:
    """The slowness of each board against the first on the layers all of them measured.

    Args:
        measured: one measurement per board.
        names: the layers all boards measured.

    Returns:
        For each board the median over those layers of its latency over the first board's, minus 1.
    """
    medians = []
    for each in measured:
        column = {subject_name(subject): index for index, subject in enumerate(each.subjects)}
        medians.append(np.median(each.samples_ms, axis=0)[[column[name] for name in names]])
    return [float(np.median(each / medians[0])) - 1 for each in medians]
