"""Inference runtimes: how a layer or a network becomes something that can be timed.

The runtime belongs to the hardware. PyTorch eager is no proxy for a deployed model: Arm publishes
72.6 ms eager against 10.9 ms with ExecuTorch for MobileNetV2 on a Raspberry Pi 5.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from nas.measuring.models import Model, runner_of
from nas.measuring.rounds import Runner, reason_of
from nas.runtimes import executorch, litert, ncnn, onnxruntime, openvino, pytorch
from nas.runtimes.engine import Engine
from nas.runtimes.subject import (
    PRECISIONS,
    CannotRunError,
    Precision,
    RuntimeUnavailableError,
    Subject,
)
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey
from search_spaces.tasks import Task, TaskNetwork

RuntimeName = str
# A runtime is a word here, a file of this package and a YAML in conf/runtime.
ENGINES: dict[str, Engine] = {
    each.name: each
    for each in (
        onnxruntime.ENGINE,
        litert.ENGINE,
        litert.SPLIT,
        openvino.ENGINE,
        ncnn.ENGINE,
        executorch.ENGINE,
        pytorch.ENGINE,
        pytorch.COMPILED,
    )
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime with its settings.

    Attributes:
        name: one of :data:`ENGINES`.
        precision: ``fp32``, or ``int8`` (static quantisation) where the runtime has it.
        threads: threads within an operator.
    """

    name: RuntimeName = "onnxruntime"
    precision: Precision = "fp32"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            near = get_close_matches(str(self.name), ENGINES, 1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise RuntimeUnavailableError(
                f"unknown runtime {self.name!r}; {guess}known are {', '.join(ENGINES)}"
            )
        if self.precision not in PRECISIONS:
            raise RuntimeUnavailableError(
                f"unknown precision {self.precision!r}; known are {', '.join(PRECISIONS)}"
            )
        if self.precision not in ENGINES[self.name].precisions:
            able = [name for name, engine in ENGINES.items() if self.precision in engine.precisions]
            raise RuntimeUnavailableError(
                f"runtime {self.name} has no {self.precision} here; use runtime={' or runtime='.join(able)} "
                f"for {self.precision}, or precision {ENGINES[self.name].precisions[0]}"
            )
        if type(self.threads) is not int or self.threads < 1:
            raise RuntimeUnavailableError(f"threads must be a positive integer, not {self.threads!r}")

    def version(self) -> str:
        """Version of the installed runtime.

        Raises:
            RuntimeUnavailableError: with the command that installs it.
        """
        engine = ENGINES[self.name]
        try:
            return importlib.metadata.version(engine.package)
        except importlib.metadata.PackageNotFoundError:
            raise RuntimeUnavailableError(
                f"runtime {self.name} is not installed; install it with: "
                f"pip install 'mobilenet-nas[{engine.extra}]'"
            ) from None

    def check_task(self, task: Task) -> None:
        """Refuse to run networks with a task's head where this runtime cannot.

        Raises:
            RuntimeUnavailableError: naming those that can.
        """
        if not ENGINES[self.name].tasks or self.precision != "fp32":
            able = [name for name, engine in ENGINES.items() if engine.tasks]
            raise RuntimeUnavailableError(
                f"runtime {self.name} ({self.precision}) runs no networks for {task.name} here; use "
                f"runtime={' or runtime='.join(able)} in fp32"
            )

    def check_board(self) -> None:
        """Refuse what cannot be sent to a board from here.

        Raises:
            RuntimeUnavailableError: naming the runtimes that boards can run, or how to install this one.
        """
        self._for_boards()
        self.version()

    def _for_boards(self) -> Callable[[Subject, Precision], Model]:
        make = ENGINES[self.name].model
        if make is None:
            able = [name for name, engine in ENGINES.items() if engine.model is not None]
            raise RuntimeUnavailableError(
                f"runtime={self.name} cannot be sent to a board; use runtime={' or runtime='.join(able)}"
            )
        return make

    def runner(self, subject: Subject) -> Runner:
        """A call that runs a layer or a whole network once.

        Raises:
            CannotRunError: if it does not take this subject.
            RuntimeUnavailableError: if the runtime is not installed.
        """
        self.version()
        if isinstance(subject, TaskNetwork):
            self.check_task(subject.task)
        make = ENGINES[self.name].runner
        with self._naming(subject):
            if make is None:
                return runner_of(self.name, self._for_boards()(subject, self.precision), self.threads)
            return make(subject, self.precision, self.threads)

    def model(self, subject: Subject) -> Model:
        """A layer or a whole network as a board is sent it.

        Raises:
            CannotRunError: if the runtime does not take this subject.
            RuntimeUnavailableError: if boards cannot run it, or the runtime is not installed here.
        """
        make = self._for_boards()
        self.version()
        if isinstance(subject, TaskNetwork):
            self.check_task(subject.task)
        with self._naming(subject):
            return make(subject, self.precision)

    @contextlib.contextmanager
    def _naming(self, subject: Subject) -> Iterator[None]:
        """Whatever goes wrong with a subject becomes one line that names it."""
        try:
            yield
        except (InputError, MemoryError):
            raise
        except Exception as error:  # every runtime has exceptions of its own
            what = f"layer {subject}" if isinstance(subject, LayerKey) else f"network {subject.id}"
            reason = reason_of(error)
            raise CannotRunError(
                f"runtime {self.name} ({self.precision}) cannot run {what}: {reason}; "
                "take another runtime, or leave such layers out of the search space",
                reason,
            ) from error


def installed(precision: Precision = "fp32") -> tuple[RuntimeName, ...]:
    """The runtimes that are installed here and have a precision."""
    found: list[RuntimeName] = []
    for name in ENGINES:
        if precision in ENGINES[name].precisions:
            with contextlib.suppress(RuntimeUnavailableError):
                Runtime(name, precision).version()
                found.append(name)
    return tuple(found)
