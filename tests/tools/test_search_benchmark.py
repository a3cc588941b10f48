import re
from pathlib import Path

import pytest

from tests.cases import MadeUpAccuracy, MadeUpLatency, small_space
from tools.sampler_comparison import Runs, World
from tools.search_benchmark import benchmark_table, main

CELL = re.compile(r"(-?\d+\.\d\d) \((-?\d+\.\d\d)\)")


@pytest.mark.slow
def test_a_table_of_samplers_on_a_known_front(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    problem = World(small_space(), MadeUpLatency(), MadeUpAccuracy(), scatter=0.1)
    runs = Runs(tmp_path / "runs.jsonl", "small")
    benchmark_table(problem, ["bayesian", "random"], 2, 100, runs)
    *_, head, _, ours, chance = capsys.readouterr().out.splitlines()
    assert head == "| sampler | HV@100 | HV@100, nadir | regret@100 |"
    cells = {
        line.split()[1]: [tuple(map(float, each)) for each in CELL.findall(line)] for line in (ours, chance)
    }
    for (median, worst), (random_median, _) in zip(cells["bayesian"][:2], cells["random"], strict=False):
        assert random_median < worst <= median <= 100
    median, worst = cells["bayesian"][2]
    assert 0 <= median <= worst
    # The file holds what was found: two runs of each sampler for the front, two within the budget.
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 8


def test_netadapt_ends_at_v3_large_s_latency(capsys: pytest.CaptureFixture[str]) -> None:
    main(["netadapt"])
    rows = {
        cells[1].strip(): (float(cells[2]), float(cells[3]))
        for line in capsys.readouterr().out.splitlines()
        if len(cells := line.split("|")) == 5 and cells[2].strip()[0].isdigit()
    }
    (large_top1, large_ms), (start_top1, start_ms) = rows["MobileNetV3-Large"], rows["all expansions 6"]
    top1, latency_ms = rows["refined"]
    assert latency_ms <= large_ms < start_ms
    assert large_top1 < top1 < start_top1


def test_wrong_arguments_are_refused() -> None:
    for arguments in (["everything"], ["stages", "--samplers", "annealing"], ["space", "--evaluations", "7"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
