"""A study's database that is waited for while it is away: restarted, failed over, its cable pulled."""

from __future__ import annotations

import copy
import functools
import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from search_spaces.errors import InputError, masked
from search_spaces.gate import MEGABYTE, Gate

if TYPE_CHECKING:
    from optuna.storages._rdb.models import TrialModel
    from sqlalchemy.orm import Session

_P = ParamSpec("_P")
_T = TypeVar("_T")

_POLL_S = 0.5
# Of an attribute: tables of latencies are texts in it.
_LONGEST_TEXT = 16 * MEGABYTE
# A mistyped address is told from a server that restarts by nothing but time.
_LONGEST_OPENING_S = 90.0
# System attribute of a trial: tells one that was created from one whose creation was cut off.
_TOKEN = "token"  # noqa: S105 - no secret
# What Optuna ends in where a row of its tables is not what it wrote.
_DAMAGED = (
    *(StorageInternalError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(AssertionError, RecursionError),
)
_ASKS_BY_KEY = ("get_study_id_from_name", "get_study_name_from_id", "get_trial_id_from_study_id_trial_number")
# What a server says when it refuses for good contains FATAL, but so does what it says of a passing state.
_PASSING = ("starting up", "shutting down", "recovery", "too many", "remaining connection slots")

# A lost connection is told in one line, not in twenty.
logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)


class StorageError(InputError):
    """A storage that cannot be used. The message says which and why."""


class PatientStorage(RDBStorage):
    """Optuna's database storage, whose every operation is repeated until the database answers.

    An operation that was cut off may have been done all the same: a trial is created once, and told once.

    Args:
        url: of SQLAlchemy.
        engine: keyword arguments of ``sqlalchemy.create_engine``.
        wait_s: an operation that has waited for so many seconds is given up; opening waits for 90 at most.
        say: told in one line that the database went away, and that it is back.

    Attributes:
        answers_since: ``time.monotonic()`` when it last came back, minus infinity if it never was away.

    Raises:
        StorageError: if it does not answer in time, or refuses.
    """

    def __init__(
        self, url: str, engine: dict[str, object], wait_s: float = 1800.0, say: Callable[[str], None] = print
    ) -> None:
        self.answers_since = -math.inf
        self._name = masked(url.replace("+psycopg:", ":"))
        self._wait_s = min(wait_s, _LONGEST_OPENING_S)
        self._say = say
        self._away_since: float | None = None
        self._lock = threading.Lock()
        self._begun: set[str] = set()
        open_it = functools.partial(super().__init__, url, engine_kwargs=engine)
        self.until_it_answers(open_it, opening=True)
        self._wait_s = wait_s

    def until_it_answers(self, operation: Callable[[], _T], opening: bool = False) -> _T:
        """The result of an operation, repeated while the database is away.

        Args:
            operation: what to do; may be done several times.
            opening: whether to believe the database when it refuses.

        Raises:
            StorageError: if it stays away.
        """
        begun = time.monotonic()
        while True:
            try:
                result = operation()
            except Exception as error:
                reason = _why_away(error)
                if reason is None:
                    raise
                refused = "FATAL" in reason and not any(each in reason for each in _PASSING)
                unknown = "resolve host" in reason or "translate host" in reason
                waited_s = time.monotonic() - begun
                if waited_s >= self._wait_s or (opening and (refused or unknown)):
                    raise StorageError(self._given_up(reason, waited_s, opening)) from None
                self._went_away(reason)
                time.sleep(min(_POLL_S, self._wait_s))
            else:
                if self._away_since is not None:
                    self._came_back()
                return result

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """See ``optuna.storages.BaseStorage``; what was told before the connection broke counts."""
        tell = functools.partial(super().set_trial_state_values, trial_id, state, values)
        attempts = 0

        def told() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                return tell()
            except UpdateFinishedTrialError:
                trial = super(PatientStorage, self).get_trial(trial_id) if attempts > 1 else None
                if trial is None or (trial.state, trial.values) != (state, values and list(values)):
                    raise
                return True

        return self.until_it_answers(told)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        if template_trial is not None:
            template_trial = copy.copy(template_trial)
            template_trial.system_attrs = {**template_trial.system_attrs, _TOKEN: uuid.uuid4().hex}
        create = functools.partial(super()._create_new_trial, study_id, template_trial)
        try:
            return self.until_it_answers(create)
        finally:
            if template_trial is not None:
                self._begun.discard(template_trial.system_attrs[_TOKEN])

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> TrialModel:
        # Within the transaction: Optuna repeats it by itself, too.
        if template_trial is not None:
            token = template_trial.system_attrs[_TOKEN]
            if token in self._begun and (there := _with_token(session, token)) is not None:
                return there
            self._begun.add(token)
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    def _given_up(self, reason: str, waited_s: float, opening: bool) -> str:
        waited = f" for {waited_s:.0f} s" if waited_s >= 1 else ""
        remedy = "" if opening else "; the same command goes on when it does"
        return f"the study storage {self._name} does not answer{waited}: {reason}{remedy}"

    def damaged(self, error: Exception) -> StorageError:
        """An error that tells of rows that are none of a study's: others may write into a database."""
        reason = f"{type(error).__name__}: {str(error) or 'no value'}"
        return StorageError(f"the study storage {self._name} is damaged: {reason}")

    def _went_away(self, reason: str) -> None:
        with self._lock:
            if self._away_since is not None:
                return
            self._away_since = time.monotonic()
        self._say(
            f"the study storage {self._name} does not answer ({reason}): "
            f"waiting for it, {self._wait_s:g} s at most"
        )

    def _came_back(self) -> None:
        with self._lock:
            if self._away_since is None:
                return
            away_s, self._away_since = time.monotonic() - self._away_since, None
            self.answers_since = time.monotonic()
        self._say(f"the study storage {self._name} answers again after {away_s:.0f} s")


def _patient(method: Callable[Concatenate[PatientStorage, _P], _T]) -> Callable[..., _T]:
    @functools.wraps(method)
    def waiting(self: PatientStorage, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            found = self.until_it_answers(functools.partial(method, self, *args, **kwargs))
            if method.__name__ == "get_study_user_attrs":  # as of a study file, whose records are looked at
                Gate(f"the study storage {self._name}", StorageError).plain(found, longest_text=_LONGEST_TEXT)
            return found
        except StorageError:
            raise
        except Exception as error:
            if method.__name__ in _ASKS_BY_KEY and isinstance(error, KeyError):
                raise  # Optuna's own way to say that there is no such study or trial
            if isinstance(error, _DAMAGED) or type(error).__module__.startswith("sqlalchemy"):
                raise self.damaged(error) from None
            raise

    return waiting


# Everything else that talks to the database; doing any of it twice is doing it once.
for _name in (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "get_all_studies",
    "_set_trial_param",
    "get_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "_get_trials",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
    "record_heartbeat",
):
    setattr(PatientStorage, _name, _patient(getattr(RDBStorage, _name)))


def _with_token(session: Session, token: str) -> TrialModel | None:
    from optuna.storages._rdb.models import TrialModel, TrialSystemAttributeModel

    found: TrialModel | None = (
        session.query(TrialModel)
        .join(TrialSystemAttributeModel, TrialSystemAttributeModel.trial_id == TrialModel.trial_id)
        .filter(TrialSystemAttributeModel.key == _TOKEN)
        .filter(TrialSystemAttributeModel.value_json == json.dumps(token))
        .one_or_none()
    )
    return found


def _why_away(error: Exception) -> str | None:
    """In one line why a database did not answer; None for an error that waiting does not mend."""
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

    if not isinstance(error, StorageInternalError | SQLAlchemyError):
        return None
    # Optuna goes on with a broken connection here and there: what broke it is further down.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    if not (isinstance(cause, OperationalError | InterfaceError) or cause.connection_invalidated):
        return None
    reason = str(cause.orig or cause).strip().splitlines()[0]
    file = type(cause.orig).__module__.startswith("sqlite3")
    return None if file and "locked" not in reason else reason
