"""The tools whose commands no other test runs, on small inputs."""

import csv
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from search_spaces.layers import reachable_layer_keys
from tests.cases import TINY_SPACE, Run, layer_ms, small_space
from tools import (
    dependencies,
    gains,
    gaussian_processes,
    golden_layers,
    long_study_benchmark,
    mutate_readers,
    training_benchmark,
)

ROOT = Path(__file__).parents[2]


def _arguments(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tool", *arguments])


def test_dependencies_are_written_with_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _arguments(monkeypatch, "--output", str(tmp_path))
    dependencies.main()
    constraints = dict(
        line.split("==") for line in (tmp_path / "constraints.txt").read_text().splitlines() if line
    )
    assert constraints["numpy"] == np.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {each.split(">=")[0].split("[")[0].lower() for each in project["dependencies"]}
    assert declared <= {name.lower() for name in constraints}
    assert f"| numpy | {np.__version__} |" in (tmp_path / "dependencies.md").read_text()


def test_golden_layers_are_written_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "layers.json"
    two = golden_layers.networks()[:2]
    monkeypatch.setattr(golden_layers, "networks", lambda: two)
    monkeypatch.setattr(golden_layers, "GOLDEN", written)
    golden_layers.main()
    assert (
        json.loads(written.read_text())
        == json.loads((ROOT / "tests" / "golden" / "layers.json").read_text())[:2]
    )


def test_readers_are_fed_damaged_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.json"
    _arguments(monkeypatch, "--reader", "card", "--inputs", "40", "--output", str(output))
    with pytest.raises(SystemExit, match=r"False|0"):
        mutate_readers.main()
    (counts,) = json.loads(output.read_text()).values()
    assert counts["inputs"] == counts["accepted"] + counts["refused"] == 40
    assert counts["refused"] > 20
    assert "wrong: none" in capsys.readouterr().out


@pytest.mark.slow
def test_a_long_study_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_study_benchmark, "_SIZES", (1,))
    monkeypatch.setattr(long_study_benchmark, "_MEMBERS", (300,))
    monkeypatch.setattr(long_study_benchmark, "_SEARCHED", 20)
    # In this process: each of its own takes seconds to import what it needs.
    monkeypatch.setattr(long_study_benchmark, "alone", lambda function, *arguments: function(*arguments))
    _arguments(monkeypatch, "--trials", "60", "--output", str(tmp_path / "long"))
    long_study_benchmark.main()
    found = json.loads((tmp_path / "long.json").read_text())
    assert found["trials"][-1]["trials"] > 50
    assert found["tables"][0]["layers"] > 7_000
    assert found["fronts"][0]["members"] == 300
    assert all(each > 0 for rows in found.values() for row in rows for each in row.values())
    with Image.open(tmp_path / "long.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.slow
def test_gains_are_told_at_four_latencies(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"]
    asked = ["hardware=rpi4", "search_space=benchmark_stages", "search.trials=10", "study.name=a"]
    assert run("search", *asked, "search.references=[mobilenet_v2]").code == 0
    with pytest.raises(SystemExit, match="a lacks the reference mobilenet_v1"):
        gains.main([str(tmp_path / "results" / "a")])
    outcome = run("search", *asked[:-1], "study.name=b", f"search.references=[{','.join(names)}]")
    assert outcome.code == 0, outcome
    gains.main([str(tmp_path / "results" / "b")])
    head, _, *rows = capfd.readouterr().out.splitlines()
    assert head.count("over mobilenet") == 4
    latencies = [float(row.split("|")[1].split(" ms")[-2].split()[-1].strip(",")) for row in rows]
    assert len(latencies) == 5
    assert latencies == sorted(latencies)


@pytest.mark.slow
def test_latencies_of_whole_tables_and_of_a_part_are_compared(
    run: Run, tmp_path: Path, unsteady_machine: None
) -> None:
    space = {**TINY_SPACE, "resolutions": [128], "classes": 1000}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(space))
    few = ["benchmark.kept_aside=10", "benchmark.calibrating=8", "benchmark.max_keys=300"]
    few += ["benchmark.rounds=3"]
    outcome = run("latency_benchmark", "search_space=tiny.yaml", *few, "benchmark.folder=found")
    assert outcome.code == 0, outcome
    text = (tmp_path / "found" / "onnxruntime-fp32-1t.md").read_text()
    assert "| every layer measured |" in text
    assert "| 300 measured, the rest predicted |" in text


@pytest.mark.slow
def test_what_few_layers_tell_is_stated(run: Run, tmp_path: Path) -> None:
    keys = sorted(reachable_layer_keys(small_space()), key=str)[:60]
    with (tmp_path / "layers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "mean_ms"])
        writer.writerows([str(key), layer_ms(key)] for key in keys)
    outcome = run("preset_adaptation", "table=layers.csv", "counts=[10,30]", "draws=1")
    assert outcome.code == 0, outcome
    rows = [line for line in outcome.out.splitlines() if any(f" {n} " in line for n in (10, 30))]
    assert len(rows) >= 2, outcome.out


@pytest.mark.slow
def test_scoring_is_counted(run: Run) -> None:
    outcome = run("scoring_benchmark", "search_space=benchmark_stages", "networks=200", "repeats=2")
    assert outcome.code == 0, outcome
    assert "a second" in outcome.out


@pytest.mark.slow
def test_processes_are_compared_on_a_study(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gaussian_processes, "_SPACES", ("benchmark_stages",))
    monkeypatch.setattr(gaussian_processes, "_KNOWN", (60,))
    monkeypatch.setattr(gaussian_processes, "_OTHERS", 100)
    gaussian_processes.main(["study"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(gaussian_processes.KERNELS)
    # The kernel of the sampler tells a hundred networks from sixty others by far better than chance.
    assert float(rows[0][2]) < 0.5
    assert float(rows[0][3]) > 0.8


@pytest.mark.slow
def test_a_command_is_crashed_and_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "crashes.json"
    given = ["--folder", str(tmp_path / "crashes"), "--moments", "2", "--commands", "search"]
    # In a process of its own: it forks, which torch does not bear once it has computed gradients.
    done = subprocess.run(
        [sys.executable, "-m", "tools.crash_test", *given, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())["search"]["problems"] == []


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs dataset-fashion-mnist"
)
def test_a_supernet_ranks_a_few_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "_DRAWN": 6,
        "_MEMBERS": 3,
        "_ALONE_EPOCHS": 1,
        "_SUPERNET_EPOCHS": 1,
        "_RANKING_IMAGES": 1_000,
        "_JUDGED": 100,
        "_ROUNDS": 3,
    }.items():
        monkeypatch.setattr(training_benchmark, name, value)
    runs = tmp_path / "runs.jsonl"
    asked = ["ranking", "--images", "/usr/share/datasets/fashion-mnist", "--seeds", "1", "--runs", str(runs)]
    training_benchmark.main(asked)
    said = capsys.readouterr().out
    assert "seed 0: 3 members alone" in said
    assert "tau over seeds:" in said
    before = runs.read_text()
    training_benchmark.main(asked)
    assert runs.read_text() == before  # nothing is trained twice
