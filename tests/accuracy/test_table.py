import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.accuracy.networks import AccuracyDataError
from nas.accuracy.source import Accuracy, AccuracyError
from nas.accuracy.table import AccuracyTable
from search_spaces.references import reference
from search_spaces.space import SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "name": "small",
        "resolutions": [32],
        "stems": [{"channels": 16}],
        "stages": [
            {
                "stride": 2,
                "depths": [1, 2],
                "widths": [24],
                "kernels": [3, 5],
                "expansions": [2.5, 6],
                "se": [False, True],
            }
        ],
        "heads": [{"conv_channels": 64}],
        "classes": 10,
    }
)
ROWS: list[dict[str, Any]] = [
    {
        "stage1.depth": 2,
        "stage1.kernel": 3,
        "stage1.block1.expansion": 2.5,
        "stage1.block2.expansion": 6,
        "stage1.se": False,
        "accuracy": 90.5,
    },
    # As pandas writes it: an inactive cell is empty, which makes the column one of floats.
    {
        "stage1.depth": "1",
        "stage1.kernel": "5.0",
        "stage1.block1.expansion": "6.0",
        "stage1.block2.expansion": "",
        "stage1.se": "True",
        "accuracy": "88",
    },
]


def _table(path: Path, rows: list[dict[str, Any]]) -> AccuracyTable:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return AccuracyTable(SPACE, path)


def test_looks_up_by_architecture(tmp_path: Path) -> None:
    table = _table(tmp_path / "t.csv", ROWS)
    assert len(table) == 2
    known = {"stage1.depth": 1, "stage1.kernel": 5, "stage1.block1.expansion": 6.0, "stage1.se": True}
    assert table.accuracy(SPACE.build(known)) == Accuracy(88.0, "given")


def test_a_network_has_one_accuracy_however_it_is_described(tmp_path: Path) -> None:
    # Widths are rounded to multiples of 8: one percent more is the same network.
    space = replace(SPACE, width_multipliers=(1.0, 1.01))
    row = {"width_multiplier": "1.0", **ROWS[1]}
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    table = AccuracyTable(space, path)
    known = {"stage1.depth": 1, "stage1.kernel": 5, "stage1.block1.expansion": 6.0, "stage1.se": True}
    assert table.accuracy(space.build({"width_multiplier": 1.01, **known})) == Accuracy(88.0, "given")


def test_unknown_architectures_are_infeasible(tmp_path: Path) -> None:
    table = _table(tmp_path / "t.csv", ROWS)
    known = {"stage1.depth": 1, "stage1.kernel": 5, "stage1.block1.expansion": 6.0, "stage1.se": True}
    with pytest.raises(AccuracyError, match=r"t.csv holds no accuracy"):
        table.accuracy(SPACE.build(known | {"stage1.kernel": 3}))
    with pytest.raises(AccuracyError, match="has 10 classes, not 1000"):
        table.accuracy(reference("mobilenet_v2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, r"t.csv: unknown column 'colour'; known: accuracy, stage1.depth"),
        ({"accuracy": ""}, r"t.csv, line 3: accuracy is empty"),
        ({"accuracy": "101"}, "line 3: accuracy must be between 0 and 100, not 101"),
        ({"stage1.kernel": ""}, r"line 3: stage1.kernel is empty or missing"),
        ({"stage1.kernel": "7"}, r"line 3: stage1.kernel: '7' is not among \[3, 5\]"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    first = dict.fromkeys(change, "") | ROWS[0]
    with pytest.raises(AccuracyDataError, match=message):
        _table(tmp_path / "t.csv", [first, ROWS[1] | change])


def test_contradictions_are_named(tmp_path: Path) -> None:
    with pytest.raises(AccuracyDataError, match=r"line 4: repeats the architecture of line 3 .* 70, not 88"):
        _table(tmp_path / "t.csv", [*ROWS, ROWS[1] | {"accuracy": 70}])


HEADINGS = "stage1.depth,stage1.kernel,stage1.block1.expansion,stage1.block2.expansion,stage1.se,accuracy"


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeff{HEADINGS}\n1,5,6,,True,88.5\n",
        f"{HEADINGS}\n1, 5, 6, , 1, 88.5 %\n,,,,,\n",
        f"{HEADINGS.replace(',', ';')}\r\n1;5;6,0;;1;88,5\r\n",
        f"{HEADINGS.replace(',', chr(9))}\n1\t5\t6\t\tyes\t88,5\n",
        "Stage1 Depth,stage1_kernel,Stage1.Block1.Expansion,stage1.block2.expansion,SE?,Top-1 (%)\n".replace(
            "SE?", "stage1-se"
        )
        + "1,5.0,6.0,,TRUE,88.5\n",
    ],
)
def test_reads_what_people_and_spreadsheets_write(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    known = {"stage1.depth": 1, "stage1.kernel": 5, "stage1.block1.expansion": 6.0, "stage1.se": True}
    assert AccuracyTable(SPACE, path).accuracy(SPACE.build(known)).top1 == 88.5


def test_fractions_and_near_misses_are_named(tmp_path: Path) -> None:
    fractions = [row | {"accuracy": float(row["accuracy"]) / 100} for row in ROWS]
    with pytest.raises(AccuracyDataError, match=r"these are fractions, write percent \(90.5, not 0.905\)"):
        _table(tmp_path / "t.csv", fractions)
    with pytest.raises(
        AccuracyDataError, match=r"unknown column 'stage1.kernal'; did you mean 'stage1.kernel'"
    ):
        _table(tmp_path / "t.csv", [{"stage1.kernal": 3} | row for row in ROWS])
    with pytest.raises(AccuracyDataError, match="column 'accuracy' appears twice"):
        _table(tmp_path / "t.csv", [{"top1": 3} | row for row in ROWS])
