"""Durable studies: one file without a server, or a database shared by many machines.

    storage = open_storage("results/digits/study.journal")     # or "postgresql://user@host/database"
    study = open_study(storage, "digits", StudySetting(pareto(), space, fingerprint={...}))

The file is an Optuna journal: `optuna-dashboard FILE`, `optuna.load_study` through
`JournalStorage(JournalFileBackend(FILE))` and Optuna's visualisations open it, also while a search
is writing to it. One process writes at a time; a second one is refused.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState

from nas.disk import cannot_write
from nas.latency.table import FILES, MAX_BYTES, LatencyTable
from nas.saving import HeldError, SaveError, hold, saving
from nas.study.database import PatientStorage, StorageError
from nas.study.journal import Distributions, records, storage_of
from nas.study.objective import Objective
from nas.study.provenance import Provenance
from nas.study.trial import SETTLED
from search_spaces.errors import InputError, masked
from search_spaces.gate import MAX_STREAM_BYTES, MEGABYTE, Gate
from search_spaces.space import SearchSpace

_log = logging.getLogger(__name__)
_SYNC_INTERVAL_S = 1.0
_CONNECT_TIMEOUT_S = 10
_OPENINGS = 4
_LONGEST_LINE = 64 * MEGABYTE
_SHARE = "wait for it, or share a study through study.storage=postgresql://..."
_open_here: set[tuple[int, Path]] = set()
# Study attribute with the files of the latency table that the study uses.
_LAYERS = "latency_table"
# ... and with networks measured for it, by which another machine tells its level.
_NETWORKS = "latency_networks"
_BEGUN_BY_US = frozenset((_LAYERS, _NETWORKS, "space"))
# Of machines that start together the first begins the study, the others wait so long until it is begun.
_BEGINNING_S = 60.0
_LEARNT = (*SETTLED, TrialState.RUNNING)


class StudyMismatchError(InputError):
    """A study that was started with other settings. The message names the first that differs."""


@dataclass(frozen=True, slots=True)
class StudySetting:
    """The setting that a study is begun with, and continued with alone.

    Attributes:
        objective: gives the directions and the names of the values.
        space: kept in the study, so that it can be read without anything else.
        fingerprint: what must not change while a study goes on; plain JSON types, may be nested.
        table: the layers it uses; a study that carries some already keeps those, see :func:`table_of`.
        networks: networks measured for the table, as text, likewise; see :func:`networks_of`.
    """

    objective: Objective
    space: SearchSpace
    fingerprint: Mapping[str, object] = field(default_factory=dict)
    table: LatencyTable | None = None
    networks: str | None = None

    @property
    def wanted(self) -> dict[str, object]:
        """The fingerprint as the study keeps it."""
        plain: dict[str, object] = json.loads(json.dumps(dict(self.fingerprint)))
        return {**plain, "objective_names": list(self.objective.names)}


class JournalFile(BaseJournalBackend):
    """An append-only file of JSON lines, in the format of Optuna's ``JournalFileBackend``.

    Each record is handed to the operating system at once, so a killed process loses nothing it has
    finished writing; the disk is synchronised once a second, so a power cut loses a second at most.
    A last line that was cut off is dropped when the file is next opened.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file and keep others from writing to it.

        Raises:
            StorageError: if it cannot be opened, is no journal, or is being written by another process.
        """
        self._path = path
        self._held = ExitStack()
        # A link may have come with a folder from elsewhere, and two of them would be two locks of one study.
        if path.is_symlink():
            raise StorageError(
                f"the study file {path} is a link, through which nothing is written: put the file itself in "
                "its place, or name its own folder (study.folder, study.name)"
            )
        if path.exists() and not path.is_file():
            raise StorageError(f"cannot open the study file {path}: it is no file")
        try:
            here = (os.getpid(), path.resolve())
            if here in _open_here:
                raise HeldError(f"the study {path} is in use by this process already")
            # Not the lock of the folder: there may be several journals in it.
            lock = f".{path.name}.lock"
            self._held.enter_context(hold(path.parent, f"the study {path.name}", None, lock, _SHARE))
            _open_here.add(here)
            self._held.callback(_open_here.discard, here)
            with saving(path):
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(path, flags, 0o644)
            self._held.callback(os.close, self._descriptor)
            self._drop_torn_line()
        except (HeldError, SaveError) as error:
            self._held.close()
            raise StorageError(str(error)) from None
        except BaseException:  # Ctrl-C too: a lock that nobody gives back is only found when Python ends
            self._held.close()
            raise
        self._read_count, self._read_offset = 0, 0
        # Kept from record to record: memory would hold them once for each trial.
        self._known = Distributions()
        self._synchronised = time.monotonic()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, object]]:
        """The records from the given number on.

        Raises:
            StorageError: if a record is none, naming the line.
        """
        if log_number_from < self._read_count:
            self._read_count, self._read_offset = 0, 0
        gate = Gate(f"the study file {self._path}", StorageError)
        lines = self._complete_lines()
        for line, record in zip(lines, records(gate, lines, self._read_count + 1, self._known), strict=True):
            self._read_count += 1
            self._read_offset += len(line) + 1
            if self._read_count > log_number_from:
                yield record

    def append_logs(self, logs: list[dict[str, object]]) -> None:
        """Append records.

        Raises:
            StorageError: if the disk takes no more.
        """
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        size = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            if time.monotonic() - self._synchronised >= _SYNC_INTERVAL_S:
                self.synchronise()
        except OSError as error:
            # Half a record would be glued to the next one.
            os.ftruncate(self._descriptor, size)
            raise StorageError(cannot_write(error, self._path)) from None

    def synchronise(self) -> None:
        """Wait until everything written is on the disk."""
        os.fsync(self._descriptor)
        self._synchronised = time.monotonic()

    def close(self) -> None:
        """Synchronise, and let others write; a study that was never begun leaves no file behind."""
        if self._descriptor >= 0:
            with saving(self._path):
                self.synchronise()
                if not os.fstat(self._descriptor).st_size:
                    self._path.unlink(missing_ok=True)
            self._descriptor = -1
            self._held.close()

    def _complete_lines(self) -> list[bytes]:
        size = os.fstat(self._descriptor).st_size
        data = os.pread(self._descriptor, size - self._read_offset, self._read_offset)
        return data.split(b"\n")[:-1]

    def _drop_torn_line(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, 0) != b"{":
            raise StorageError(f"{self._path} is not a study file")
        start = max(0, size - _LONGEST_LINE)
        last = os.pread(self._descriptor, size - start, start).rfind(b"\n")
        if size > MAX_STREAM_BYTES or (start and last < 0):
            raise StorageError(f"{self._path} is not a study file: it is too large, or its last line is")
        end = start + last + 1
        if end < size:
            os.ftruncate(self._descriptor, end)


def open_storage(
    location: str, wait_s: float = 1800.0, say: Callable[[str], None] = _log.warning
) -> BaseStorage:
    """Open a study file (a path) or a database (a URL with ``://``).

    Args:
        location: of the study.
        wait_s: how long a database that is away is waited for, then and later; at the opening 90 s at most.
        say: told in one line when it goes away, and when it is back.

    Raises:
        StorageError: if it cannot be opened or does not answer.
    """
    if "://" not in location:
        journal = JournalFile(Path(location))
        try:
            return storage_of(journal, Gate(f"the study file {location}", StorageError))
        except BaseException:
            journal.close()
            raise
    # Half of what a report takes to start; most studies are files.
    from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

    url = location
    scheme = location.split("://", 1)[0]
    # psycopg (version 3) is the driver of the extra `postgres`; SQLAlchemy's default is psycopg2.
    if scheme in ("postgres", "postgresql"):
        url = "postgresql+psycopg://" + location.split("://", 1)[1]
    engine: dict[str, object] = {"pool_pre_ping": True}
    if url.startswith("postgresql"):
        engine["connect_args"] = {"connect_timeout": _CONNECT_TIMEOUT_S}
    for attempt in range(1, _OPENINGS + 1):
        try:
            return PatientStorage(url, engine, wait_s, say)
        except ImportError as error:
            raise StorageError(
                f"the study storage {masked(location)} needs a driver: "
                f"pip install 'mobilenet-nas[postgres]' ({error})"
            ) from None
        except StorageError:
            raise
        except (
            SQLAlchemyError,
            StorageInternalError,
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
        ) as error:
            # Of machines that start together one creates the tables, the others have to look again.
            if attempt < _OPENINGS and isinstance(error, IntegrityError | ProgrammingError):
                time.sleep(attempt)
                continue
            reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0] or "no value"
            raise StorageError(f"the study storage {masked(location)} does not answer: {reason}") from None
    raise AssertionError("unreachable")


def close_storage(storage: BaseStorage) -> None:
    """Finish writing and let others use the study."""
    backend = getattr(storage, "_backend", None)
    if isinstance(backend, JournalFile):
        backend.close()
    storage.remove_session()


def open_study(
    storage: BaseStorage,
    name: str,
    setting: StudySetting,
    provenance: Provenance | None = None,
) -> optuna.Study:
    """Create a study, or continue it if it is the same.

    A study of a file that holds no complete trial yet binds nobody: with other settings it is begun anew.
    Of processes that create one together in a database, one does; the others continue it.

    Args:
        storage: from :func:`open_storage`.
        name: what the study is called.
        setting: what it is begun with.
        provenance: what else is worth knowing (versions, hardware, date); replaced on each run.

    Raises:
        StudyMismatchError: if the study exists with another space, objective or fingerprint, or its file
            holds another one.
    """
    if isinstance(storage, JournalStorage):
        there = optuna.get_all_study_names(storage)
        if there and name not in there:
            raise StudyMismatchError(
                f"the study file holds the study {', '.join(map(repr, there))}, not {name!r}: was its folder "
                f"renamed? Name it {there[0]} again, or begin in another folder"
            )
    try:
        study = _begin(storage, name, setting)
    except DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        try:
            _check_directions(study, setting)
            if not _is_begun(study):
                _describe(study, setting)
            _agree(study, setting)
        except StudyMismatchError:
            if not isinstance(storage, JournalStorage) or study.get_trials(deepcopy=False, states=_LEARNT):
                raise
            optuna.delete_study(study_name=name, storage=storage)
            study = _begin(storage, name, setting)
    if setting.table is not None and _LAYERS not in study.user_attrs:
        study.set_user_attr(_LAYERS, setting.table.files())
    if provenance is not None:
        provenance.keep(study)
    return study


def _begin(storage: BaseStorage, name: str, setting: StudySetting) -> optuna.Study:
    """Create a study.

    Raises:
        DuplicatedStudyError: if there is one, even one that another process creates at this moment.
    """
    wanted = list(setting.objective.directions)
    study = optuna.create_study(storage=storage, study_name=name, directions=wanted)
    _describe(study, setting)
    return study


def _describe(study: optuna.Study, setting: StudySetting) -> None:
    if setting.table is not None:
        study.set_user_attr(_LAYERS, setting.table.files())
    if setting.networks is not None:
        study.set_user_attr(_NETWORKS, setting.networks)
    study.set_user_attr("space", setting.space.to_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(setting.objective.names))
    # Last of all: whoever finds it finds the others too.
    study.set_user_attr("fingerprint", setting.wanted)


def _is_begun(study: optuna.Study) -> bool:
    """True if the creator of a study has described it; waits for that as long as it may be under way.

    Raises:
        StudyMismatchError: if it was not made by this project.
    """
    deadline = time.monotonic() + (0 if isinstance(study._storage, JournalStorage) else _BEGINNING_S)
    while True:
        attributes = study.user_attrs
        if attributes.keys() >= {"fingerprint", "space"}:
            return True
        if attributes.keys() - _BEGUN_BY_US or study.get_trials(deepcopy=False):
            raise StudyMismatchError(
                f"study {study.study_name!r} was not made by this project: give another name"
            )
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)


def _check_directions(study: optuna.Study, setting: StudySetting) -> None:
    """Check that a study has the objectives wanted, before anything is written into it.

    Raises:
        StudyMismatchError: if it has others.
    """
    existing = tuple(direction.name.lower() for direction in study.directions)
    if existing != setting.objective.directions:
        raise StudyMismatchError(
            f"study {study.study_name!r} has the directions {', '.join(existing)}, not "
            f"{', '.join(setting.objective.directions)}: give the new study another name"
        )


def _agree(study: optuna.Study, setting: StudySetting) -> None:
    """Check that a study is the one wanted.

    Raises:
        StudyMismatchError: naming the first difference.
    """
    name, attributes = study.study_name, study.user_attrs
    gate = Gate(f"the study {name!r}", StudyMismatchError, "give the new study another name")
    kept: dict[str, object] = {**gate.mapping(attributes["fingerprint"], "fingerprint")}
    wanted = setting.wanted
    if _LAYERS in attributes:
        # What the shared table holds by now is nothing to a study that carries its own layers.
        kept, wanted = _without_content(kept), _without_content(wanted)
    plain_space = json.loads(json.dumps(setting.space.to_dict()))
    for key, old, new in _differences(attributes["space"], plain_space):
        raise StudyMismatchError(_changed(name, f"search space: {key}", old, new))
    # What somebody set comes before what follows from it.
    for key, old, new in sorted(_differences(kept, wanted), key=lambda each: "content" in each[0]):
        raise StudyMismatchError(_changed(name, key, old, new))


def table_of(storage: BaseStorage, name: str) -> LatencyTable | None:
    """The layers a study carries; None if there is no such study, or an older version made it.

    Whatever happens to the table of the hardware, a study goes on with the layers it was begun with.

    Raises:
        TableError: if they are damaged.
    """
    if name not in optuna.get_all_study_names(storage):
        return None
    files = optuna.load_study(study_name=name, storage=storage).user_attrs.get(_LAYERS)
    if files is None:
        return None
    gate = Gate(f"the study {name!r}", StorageError, "give the new study another name")
    files = gate.fields(_LAYERS, files, FILES)
    texts = {each: gate.string(each, files[each], MAX_BYTES) for each in FILES}
    return LatencyTable.from_files(texts, f"the study {name!r}: ")


def networks_of(study: optuna.Study) -> str | None:
    """Networks measured for the table that a study carries, as text; None where it has none."""
    text = study.user_attrs.get(_NETWORKS)
    return text if isinstance(text, str) else None


def refresh_study(study: optuna.Study, setting: StudySetting, provenance: Provenance) -> None:
    """Replace layers, fingerprint and provenance after the study's own run changed what they describe.

    Not for a study that others may be working on: see :func:`nas.study.trial.remeasure` for latencies.

    Args:
        study: the study.
        setting: what it is continued with from now on; its layers stay where there is no table.
        provenance: what else its report says.
    """
    if setting.table is not None and study.user_attrs.get(_LAYERS) != setting.table.files():
        study.set_user_attr(_LAYERS, setting.table.files())
    study.set_user_attr("fingerprint", setting.wanted)
    provenance.keep(study)


def _without_content(fingerprint: Mapping[str, object]) -> dict[str, object]:
    latency = fingerprint.get("latency table")
    if not isinstance(latency, dict):
        return dict(fingerprint)
    return {**fingerprint, "latency table": {key: latency[key] for key in latency if key != "content"}}


def _changed(name: str, key: str, old: object, new: object) -> str:
    # Digests say nothing to people.
    what = None
    if key == "latency table.content":
        what = "the latencies of its layers"
    elif key == "dataset.content":
        what = "the files in dataset.root"
    elif key.startswith("accuracy.content."):
        what = f"the content of the file accuracy.{key.removeprefix('accuracy.content.')}"
    if what is not None:
        return (
            f"study {name!r} was started with another state of {what}; restore it or give the new study "
            "another name"
        )
    return (
        f"study {name!r} was started with {key} = {_short(old)}, now it is {_short(new)}: "
        "restore the setting or give the new study another name"
    )


def _short(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _differences(old: object, new: object, key: str = "") -> Iterator[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and key:
        for number, (one, other) in enumerate(zip(old, new, strict=True), start=1):
            yield from _differences(one, other, f"{key} {number}")
    elif old != new:
        yield key, old, new
