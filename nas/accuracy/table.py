"""Known accuracies from a CSV: benchmarks, and grids that somebody has trained.

The file has one column per parameter of the search space, named as in the study, and a column
``accuracy`` in percent. Cells of inactive parameters (of blocks that do not exist) may stay empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas.accuracy.csv import Line, read_lines
from nas.accuracy.networks import REPEAT_TOLERANCE, AccuracyDataError
from nas.accuracy.source import Accuracy, AccuracyError
from search_spaces.architecture import Architecture
from search_spaces.space import NotInSpaceError, SearchSpace
from search_spaces.stage import Value

_ACCURACY = "accuracy"


class AccuracyTable:
    """Accuracies of the members of a search space, each known by its parameters in the file.

    Args:
        space: the space whose parameters name the columns.
        path: the CSV file.

    Raises:
        AccuracyDataError: on an unknown or missing column, a missing or wrong value, an accuracy
            outside 0 to 100, or repeated architectures that disagree.
    """

    def __init__(self, space: SearchSpace, path: Path) -> None:
        self._space, self._path = space, path
        candidates = space.parameters()
        texts = {name: _texts(values) for name, values in candidates.items()}
        # By network: several settings of a space may give the same one.
        self._top1: dict[Architecture, float] = {}
        lines: dict[Architecture, Line] = {}
        for line in read_lines(path, [_ACCURACY], list(candidates)):
            top1 = line.number_up_to(_ACCURACY, 100)
            key = self._read(line, texts)
            first = lines.setdefault(key, line)
            if abs(self._top1.setdefault(key, top1) - top1) > REPEAT_TOLERANCE:
                raise line.fail(
                    f"repeats the architecture of line {first.number} with accuracy {top1:g}, "
                    f"not {self._top1[key]:g}"
                )

        best = max(self._top1.values(), default=0.0)
        if 0 < best <= 1:
            raise AccuracyDataError(
                f"{path}: no {_ACCURACY} is above 1: these are fractions, write percent "
                f"({100 * best:g}, not {best:g})"
            )

    def __len__(self) -> int:
        return len(self._top1)

    def _read(self, line: Line, texts: dict[str, dict[str, Value]]) -> Architecture:
        def choose(name: str, choices: tuple[Value, ...]) -> Value:
            cell = line.cells.get(name, "").strip()
            if not cell:
                raise line.fail(f"{name} is empty or missing, but this architecture has it")
            if _text(cell) not in texts[name]:
                raise line.fail(f"{name}: {cell!r} is not among {list(choices)}")
            return texts[name][_text(cell)]

        return self._space.compose(choose)

    @property
    def expensive(self) -> bool:
        """See :class:`nas.accuracy.source.SearchSource`."""
        return False

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """The accuracy in the table.

        Raises:
            AccuracyError: if the table does not hold the architecture.
        """
        top1 = self._top1.get(architecture)
        if top1 is None:
            try:
                self._space.encode(architecture)
            except NotInSpaceError as error:
                raise AccuracyError(str(error)) from None
            raise AccuracyError(f"{self._path} holds no accuracy of this architecture")
        return Accuracy(top1, "given")


def _texts(values: Sequence[Value]) -> dict[str, Value]:
    """The texts by which a cell may say each value."""
    texts: dict[str, Value] = {_text(value): value for value in values}
    if all(isinstance(value, bool) for value in values):
        words: dict[str, Value] = {"0": False, "no": False, "1": True, "yes": True}
        texts |= {word: value for word, value in words.items() if value in values}
    return texts


def _text(value: Value) -> str:
    # 3, 3.0 and "3.0" are one number: pandas writes 3.0 where a column has empty cells.
    text = str(value).lower()
    try:
        return f"{float(text):g}"
    except ValueError:
        return text
