"""Where accuracies are told: in this process, or in several worker processes.

with Workers(estimator, count=2) as workers:
    workers.submit("first", architecture)
    for key, answer in workers.wait(): ...      # an Accuracy, or the AccuracyError
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Hashable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Generic, TypeVar

from nas.accuracy.source import AccuracyError, AccuracyEstimator, AccuracyOrError, BatchEstimator, GoesOn, ask
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

_Key = TypeVar("_Key", bound=Hashable)
_Asked = tuple[_Key, Architecture, GoesOn | None]

# A network that kills its worker process so often is given up.
_DEATHS = 3
# Networks a source that takes many at once is asked for at a time: a fraction of a second of work.
_BATCH = 64


class Workers(Generic[_Key]):
    """Evaluates networks, as many at once as there are workers.

    A single worker is this process itself, and takes many networks at once where the estimator does.
    Several are processes of their own, each with a copy of the estimator, which must therefore be
    picklable. The copies are made from bytes: live tensors would move to shared memory on their way, views
    of one storage among them, and crash the process that receives them. If one is killed, its work is done
    again; if this process is, or is interrupted, they end at once.

    Args:
        estimator: the source of accuracy.
        count: number of workers.

    Attributes:
        count: number of workers.
        room: networks that can be in flight at once.

    Raises:
        ValueError: if the count is not positive.
    """

    def __init__(self, estimator: AccuracyEstimator, count: int = 1) -> None:
        if count < 1:
            raise ValueError(f"search.workers must be at least 1, not {count}")
        self.count = count
        self.room = _BATCH if count == 1 and isinstance(estimator, BatchEstimator) else count
        self._estimator = estimator
        self._pool: ProcessPoolExecutor | None = None
        self._context = multiprocessing.get_context("spawn")
        # Says nothing: its end tells the workers of ours, whatever that is.
        self._theirs, self._ours = self._context.Pipe(duplex=False)
        self._waiting: list[_Asked[_Key]] = []
        self._answers: list[tuple[_Key, AccuracyOrError]] = []
        self._running: dict[Future[AccuracyOrError], _Asked[_Key]] = {}
        self._deaths: dict[_Key, int] = {}

    def __enter__(self) -> Workers[_Key]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._ours.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._ours.close()
        self._theirs.close()

    @property
    def in_flight(self) -> int:
        """Networks submitted and not yet answered."""
        return len(self._waiting) + len(self._running) + len(self._answers)

    def submit(self, key: _Key, architecture: Architecture, goes_on: GoesOn | None = None) -> None:
        """Start an evaluation; a single worker begins with it in :meth:`wait`.

        Args:
            key: comes back with the answer.
            architecture: to evaluate.
            goes_on: whether a :class:`nas.accuracy.source.StagedEstimator` goes on with it; None: always.
        """
        self._submit((key, architecture, goes_on))

    def _submit(self, asked: _Asked[_Key]) -> None:
        if self.count == 1:
            self._waiting.append(asked)
            return
        if self._pool is None:
            # Not forked: a forked process inherits threads' locks and cannot use CUDA.
            self._pool = ProcessPoolExecutor(
                self.count,
                mp_context=self._context,
                initializer=_start,
                initargs=(self._content(), self._theirs),
            )
        try:
            with _interrupted_later():
                self._running[self._pool.submit(_evaluate, *asked[1:])] = asked
        except BrokenProcessPool:
            self._restart([asked])

    def _content(self) -> bytes:
        try:
            return pickle.dumps(self._estimator)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise InputError(
                f"this source of accuracy cannot be copied to worker processes ({error}): "
                "use search.workers=1"
            ) from None

    def wait(self) -> list[tuple[_Key, AccuracyOrError]]:
        """The answers that are there; waits for the first if there is none yet."""
        if self._waiting:
            keys, architectures, rules = zip(*self._waiting, strict=True)
            self._waiting = []
            self._answers += zip(keys, ask(self._estimator, architectures, rules), strict=True)
        while self._running and not self._answers:
            finished, _ = wait(self._running, return_when=FIRST_COMPLETED)
            broken: list[_Asked[_Key]] = []
            for future in finished:
                job = self._running.pop(future)
                try:
                    self._answers.append((job[0], future.result()))
                except BrokenProcessPool:
                    broken.append(job)
            if broken:
                self._restart(broken)
        answers, self._answers = self._answers, []
        return answers

    def _restart(self, broken: list[_Asked[_Key]]) -> None:
        # One death breaks the whole pool: everything in flight has to start again.
        jobs = [*broken, *self._running.values()]
        self._running.clear()
        self._pool = None
        for asked in jobs:
            key = asked[0]
            self._deaths[key] = self._deaths.get(key, 0) + 1
            if self._deaths[key] < _DEATHS:
                self._submit(asked)
            else:
                self._answers.append((key, AccuracyError("its evaluation killed the worker process")))


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Let Ctrl-C wait; processes started within never see it, as who started them tells them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_estimator: AccuracyEstimator | None = None


def _start(content: bytes, starter: Connection) -> None:
    global _estimator  # the one thing a worker process is started with
    threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    _estimator = pickle.loads(content)  # noqa: S301 - of the process that started this one


def _end_with(starter: Connection) -> None:
    """End this process when the one that started it closes the connection, or dies."""
    with suppress(OSError):
        starter.poll(None)
    os._exit(1)


def _evaluate(architecture: Architecture, goes_on: GoesOn | None) -> AccuracyOrError:
    assert _estimator is not None
    return ask(_estimator, [architecture], [goes_on])[0]
