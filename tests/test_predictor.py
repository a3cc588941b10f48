"""``python -m nas.predictor`` from the command line."""

import csv
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nas.accuracy.imagenet import SHIPPED_PARAMETERS, Predictor
from nas.command import command
from nas.predictor import FitConfig, main
from search_spaces.references import reference

Rows = list[dict[str, object]]
CHOICES = {"expansion": (1, 4, 6), "kernel": (3, 5), "layers": (1, 2, 3), "se": (0, 1)}


def _write(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _accel() -> Rows:
    generator = random.Random(0)
    rows: Rows = []
    for _ in range(60):
        row: dict[str, object] = {
            f"stage{stage}_{name}": generator.choice(values)
            for stage in range(1, 8)
            for name, values in CHOICES.items()
        }
        depth = sum(int(str(row[f"stage{stage}_layers"])) for stage in range(1, 8))
        rows.append(row | {"top1": 50 + 0.5 * depth})
    return rows


PUBLISHED: Rows = [
    {"model": model, "width_multiplier": width, "resolution": resolution, "top1": top1}
    for model, width, resolution, top1 in (
        ("mobilenet_v2", 1.0, 224, 71.8),
        ("mobilenet_v2", 1.0, 160, 68.8),
        ("mobilenet_v2", 0.5, 224, 65.4),
        ("mobilenet_v1", 1.0, 224, 70.9),
    )
]
EXTRA: Rows = [{"architecture": "mobilenet_v3_large", "resolution": 224, "top1": 75.2}]
FIT = ["accel=accel.csv", "published=published.csv", "inducing=12", "steps=5", "output=mine.safetensors"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs ``python -m nas.predictor fit`` in this process, in a folder of the test's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run_fit(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["nas.predictor", *arguments])
        capfd.readouterr()
        code = 0
        try:
            command("predictor", FitConfig, main)
        except SystemExit as error:
            code = int(error.code or 0)
        found = capfd.readouterr()
        return Outcome(code, found.out, found.err)

    return run_fit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path / "accel.csv", _accel())
    _write(tmp_path / "published.csv", PUBLISHED)
    _write(tmp_path / "extra.csv", EXTRA)
    return tmp_path


def test_fit_judges_and_writes_parameters_that_a_search_can_use(run: Run, folder: Path) -> None:
    shipped = SHIPPED_PARAMETERS.read_bytes()
    done = run(*FIT, "extra=extra.csv", "held_out=0.2")
    assert done.code == 0, done.err
    assert re.search(r"Accel-NASBench, random +│ 12 ", done.out), done.out
    assert re.search(r"published, by variant +│ 4 ", done.out)
    for model in ("mobilenet_v1", "mobilenet_v2_050"):
        assert re.search(rf"{model} +│ 224 ", done.out)
    assert "mine.safetensors" in done.out
    assert SHIPPED_PARAMETERS.read_bytes() == shipped
    predictor = Predictor.load(folder / "mine.safetensors")
    assert predictor.predict(reference("mobilenet_v2"))[0] == pytest.approx(71.8, abs=1)
    assert predictor.predict(reference("mobilenet_v3_large"))[0] == pytest.approx(75.2, abs=1)


def _bad(name: str, change: Callable[[Rows], Rows]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / name
        with path.open() as file:
            rows: Rows = [dict(row) for row in csv.DictReader(file)]
        _write(path, change(rows))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _bad("accel.csv", lambda rows: [{**row, "colour": 1} for row in rows]),
            "accel.csv: unknown column 'colour'",
        ),
        (
            _bad("accel.csv", lambda rows: [{**rows[0], "stage3_kernel": ""}, *rows[1:]]),
            "accel.csv, line 2: stage3_kernel is empty",
        ),
        (
            _bad("published.csv", lambda rows: [*rows, {**rows[0], "top1": 7.18e5}]),
            "published.csv, line 6: top1 must be between 0 and 100, not 718000.0",
        ),
        (
            _bad("published.csv", lambda rows: [*rows, {**rows[0], "top1": 61.8}]),
            "published.csv, line 6: repeats the architecture of line 2 with top-1 61.8, not 71.8",
        ),
        (
            _bad("extra.csv", lambda rows: [{**rows[0], "resolution": 64}]),
            "extra.csv, line 2: the ImageNet predictor knows resolutions of 96 to 224 px, not 64",
        ),
        (lambda folder: (folder / "accel.csv").unlink(), "cannot read accel.csv: No such file"),
    ],
)
def test_bad_files_are_one_clear_line(
    run: Run, folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    _refused(run(*FIT, "extra=extra.csv"), message)
    assert not (folder / "mine.safetensors").exists()


def _refused(done: Outcome, message: str) -> None:
    assert done.code == 2
    (line,) = [each for each in done.err.splitlines() if each]
    assert line.startswith("error: ")
    assert message in line


def test_settings_are_checked(run: Run, folder: Path) -> None:
    _refused(run(*FIT, "held_out=1.5"), "held_out must lie between 0 and 1, not 1.5")
    _refused(run(*FIT, "inducing=0"), "inducing must be at least 1, not 0")
    _refused(run(*FIT, "steps=-1"), "steps must be at least 1, not -1")
    _refused(run(*FIT, "colour=blue"), "colour")
    _refused(run("published=published.csv"), "accel")


def test_help_and_composed_settings_are_shown(run: Run, tmp_path: Path) -> None:
    for arguments in (["--help"], ["--cfg", "job"]):
        shown = run(*arguments)
        assert shown.code == 0, shown.err
        assert "inducing" in shown.out
    assert not list(tmp_path.iterdir())
