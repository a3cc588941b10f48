import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nas.overrides import overrides_of
from nas.report import STUDIES, ReportConfig, main
from search_spaces.errors import InputError
from tests.cases import Run
from tests.page.report_cases import REFERENCES, made_up_study


def test_studies_may_be_named_by_their_folders_alone() -> None:
    def overrides(*typed: str) -> list[str]:
        return overrides_of("report", ReportConfig, typed, STUDIES)

    named = ["study=results/a", "compare=results/b"]
    assert overrides("results/a", "results/b") == named
    assert overrides("study=results/a") == named[:1]
    assert overrides("it's") == [r"study='it\'s'"]
    # What an option takes is no study, wherever it stands.
    assert overrides("results/a", "--cfg", "job") == overrides("--cfg", "job", "results/a")
    assert overrides("results/a", "--cfg", "job") == [named[0], "--cfg=job"]
    with pytest.raises(InputError, match="'results/c' is no setting"):
        overrides("results/a", "results/b", "results/c")


def test_the_file_of_a_comparison_needs_one() -> None:
    with pytest.raises(InputError, match="output is the file of a comparison"):
        main(ReportConfig(study="anywhere", output="page.html"))


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_command_that_is_told_to_stop_says_so(
    number: signal.Signals, said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.report.read_study", lambda *_: os.kill(os.getpid(), number))
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        outcome = run("report", "study=results/digits")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert outcome.code == 128 + number
    assert outcome.err == f"{said}; the same command continues where this one stopped\n"
    assert not outcome.out


def test_the_command_rebuilds_everything_from_the_study(tmp_path: Path) -> None:
    folder = tmp_path / "my study, 1"
    made_up_study(folder, trials=5)
    command = [sys.executable, "-m", "nas.report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {
        "study.journal",
        "report.html",
        "summary.md",
        "pareto.csv",
        "pareto.png",
        "pareto.svg",
        "architectures",
    }
    assert "mobilenet_v1" in done.stdout
    architecture = f"'export.architecture={folder}/architectures/"  # quoted: there is a space in it
    assert f"next: python -m nas.export {architecture}" in done.stdout


def test_a_folder_without_a_study_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nas.report", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no study in" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("study.journal", "let it end in .html"),
        ("notes.html", "exists already: give another output, or move it away"),
    ],
)
def test_a_comparison_replaces_no_file_of_others(tmp_path: Path, output: str, reason: str) -> None:
    made_up_study(tmp_path, trials=1)
    path = tmp_path / output
    path.touch()
    before = path.read_bytes()
    with pytest.raises(InputError, match=reason):
        main(ReportConfig(study=str(tmp_path), compare=str(tmp_path), output=str(path)))
    assert path.read_bytes() == before


def test_a_report_is_rebuilt_without_what_trains_and_measures() -> None:
    heavy = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "pandas", "sqlalchemy", "onnxruntime")
    code = f"import sys, nas.report; print([name for name in {heavy} if name in sys.modules])"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1", "COLUMNS": "80"},
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
    ],
)
def test_any_terminal_will_do(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "a [b] – ü"
    made_up_study(folder, trials=5)
    done = subprocess.run(
        [sys.executable, "-m", "nas.report", str(folder)],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("latin-1")
    # Brackets are no markup, and what the terminal lacks is replaced.
    assert "a [b] - " in text
    assert "mobilenet_v2" in text
    if "COLUMNS" in environment:
        answers = text[: text.index("a [b] - ")].splitlines()
        assert sum(line.startswith("  at its latency: ") for line in answers) == len(REFERENCES)
        # Lines end between words, before the terminal would end them within one.
        assert all(len(line) <= 80 for line in answers)
        for name in REFERENCES:
            assert any(line.startswith(f"{name}: ") for line in answers)
