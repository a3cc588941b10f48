"""The record of a runtime: all that the rest of the program has to know of it, made in the runtime's file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nas.measuring.conditions import PACKAGES
from nas.measuring.models import Model
from nas.measuring.rounds import Runner
from nas.runtimes.subject import Precision, Subject


@dataclass(frozen=True, slots=True)
class Engine:
    """A runtime as its file in this package offers it.

    Attributes:
        name: by which it is asked for.
        extra: of ``mobilenet-nas`` that installs it.
        model: a subject as boards are sent it, None where boards cannot run it.
        runner: makes a call that runs a subject once, in a precision, with so many threads; None where that
            is what boards are sent, run here.
        precisions: it can run.
        tasks: whether it runs networks with a head for segmentation or detection, in fp32.
        deploys: False of what is no proxy for a deployed network: it is timed where it is asked for alone.
        pays_at_borders: precisions in which a layer timed alone pays for its input and output what it does
            not pay within a network. int8 layers are given the ends they have there.
        ending: of files that networks are exported to as ``export.format=`` its name, None where none are.
    """

    name: str
    extra: str
    model: Callable[[Subject, Precision], Model] | None
    runner: Callable[[Subject, Precision, int], Runner] | None
    precisions: tuple[Precision, ...] = ("fp32",)
    tasks: bool = False
    deploys: bool = True
    pays_at_borders: tuple[Precision, ...] = ("fp32",)
    ending: str | None = None

    @property
    def package(self) -> str:
        """Distribution whose version is the runtime's."""
        return PACKAGES.get(self.name, self.extra)
