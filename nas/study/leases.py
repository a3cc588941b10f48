"""Who evaluates what: the ledger of a study that one process writes, or that many machines share.

Many writers need no coordinator. A worker *claims* a network by adding a running trial, then reads
the study: the database numbers trials one after the other, so everything with a smaller number is
visible by then. The claim is void if an earlier trial has the same network, or if the complete and
the earlier running ones are enough already. Hence no network is evaluated twice at once and no trial
too many completes.

A running trial carries a lease that its worker renews. Others watch it on their own clocks (those of
different machines need not agree): a lease that stays the same for a while is that of a dead worker,
its trial is failed as abandoned, and its network is free to be claimed again. While the database is
away no lease lapses.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.study.database import PatientStorage, StorageError
from nas.study.trial import RESULTS, SETTLED

# A worker that shows no sign of life for so long is taken for dead.
LEASE_S = 60.0
_RENEWALS_PER_LEASE = 4
_LAST_RENEWAL_S = 5.0


class Ledger(Protocol):
    """Takes claims and results."""

    def news(self) -> list[FrozenTrial]:
        """Trials of earlier runs and of other workers, running ones too, that were not returned yet."""

    def claim(self, trial: FrozenTrial, total: int) -> int | None:
        """Claim a running trial; None if it is taken or if ``total`` candidates need no further one."""

    def finish(self, claim: int, trial: FrozenTrial) -> bool:
        """Record a finished trial; False if its claim was lost to others in the meantime."""

    def close(self) -> None:
        """Renew no lease any longer."""


class SoleLedger:
    """The ledger of a study that only this process writes: a trial is recorded once, when it is finished.

    Args:
        study: the study.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._read = False
        self._claims = 0

    def news(self) -> list[FrozenTrial]:
        """See :class:`Ledger`."""
        if self._read:
            return []
        self._read = True
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def claim(self, trial: FrozenTrial, total: int) -> int | None:
        """See :class:`Ledger`."""
        self._claims += 1
        return self._claims

    def finish(self, claim: int, trial: FrozenTrial) -> bool:
        """See :class:`Ledger`."""
        self._study.add_trial(trial)
        return True

    def close(self) -> None:
        """See :class:`Ledger`."""


class SharedLedger:
    """The ledger of a study that many workers write.

    Args:
        study: the study.
        storage: its storage.
        lease_s: a worker that shows no sign of life for so many seconds is dead; :data:`LEASE_S` where None.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, lease_s: float | None = None) -> None:
        self._study = study
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._lease_s = LEASE_S if lease_s is None else lease_s
        self._own: set[int] = set()
        self._running: dict[int, int] = {}
        self._told: dict[int, TrialState] = {}
        self._leases: dict[int, tuple[int, float]] = {}
        self._stopped = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)
        self._renewing.start()

    def news(self) -> list[FrozenTrial]:
        """See :class:`Ledger`; abandons what dead workers hold."""
        fresh = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.number in self._own:
                continue
            if trial.state == TrialState.RUNNING and self._is_stale(trial):
                self._abandon(trial)
            elif self._told.get(trial.number) != trial.state:
                self._told[trial.number] = trial.state
                fresh.append(trial)
        return fresh

    def claim(self, trial: FrozenTrial, total: int) -> int | None:
        """See :class:`Ledger`."""
        trial_id = self._storage.create_new_trial(self._study_id, trial)
        number = self._storage.get_trial_number_from_id(trial_id)
        self._own.add(number)
        held = [
            each
            for each in self._study.get_trials(deepcopy=False)
            if each.number < number and each.state in (TrialState.RUNNING, *SETTLED)
        ]
        candidates = sum(each.user_attrs.get("kind") == "candidate" for each in held)
        enough = trial.user_attrs["kind"] == "candidate" and candidates >= total
        if enough or any(_clash(trial.user_attrs, each.user_attrs) for each in held):
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
        self._running[number] = trial_id
        return number

    def finish(self, claim: int, trial: FrozenTrial) -> bool:
        """See :class:`Ledger`."""
        trial_id = self._running.pop(claim)
        try:
            for key in RESULTS:
                if key in trial.user_attrs:
                    self._storage.set_trial_user_attr(trial_id, key, trial.user_attrs[key])
            self._storage.set_trial_state_values(trial_id, trial.state, trial.values)
        except UpdateFinishedTrialError:
            # Taken for dead: somebody else has or will have the result.
            self._own.discard(claim)
            return False
        return True

    def close(self) -> None:
        """See :class:`Ledger`."""
        self._stopped.set()
        # It may be waiting for a database that is away.
        self._renewing.join(_LAST_RENEWAL_S)

    def _is_stale(self, trial: FrozenTrial) -> bool:
        lease = int(trial.user_attrs.get("lease", 0))
        known, since = self._leases.get(trial.number, (None, 0.0))
        if known != lease:
            self._leases[trial.number] = (lease, time.monotonic())
            return False
        if isinstance(self._storage, PatientStorage):
            # While the database was away nobody could renew anything.
            since = max(since, self._storage.answers_since)
        return time.monotonic() - since > self._lease_s

    def _abandon(self, trial: FrozenTrial) -> None:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial_id, "abandoned", True)
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _renew(self) -> None:
        for count in itertools.count(1):
            if self._stopped.wait(self._lease_s / _RENEWALS_PER_LEASE):
                return
            for trial_id in list(self._running.values()):
                # A trial finished meanwhile needs no lease; of a database that stays away the search tells.
                with suppress(UpdateFinishedTrialError, StorageError):
                    self._storage.set_trial_user_attr(trial_id, "lease", count)


def _clash(claimed: Mapping[str, object], held: Mapping[str, object]) -> bool:
    """True if a claim is void because of an earlier one."""
    if claimed["name"] is not None and claimed["name"] == held.get("name"):
        return True
    # A reference that copies its result from another trial evaluates nothing.
    return "top1" not in claimed and claimed["architecture"] == held.get("architecture")
