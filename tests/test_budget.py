"""The budget of a search: how it may be written, and the margin that uncertain latencies keep."""

from pathlib import Path

import pytest
import yaml

from nas.foreign.network import ForeignNetworkError
from nas.foreign.timing import check_runnable
from nas.latency.hardware import Hardware, estimated_table
from nas.latency.table import Entry, LatencyTable
from nas.page.reading import read_study, report_of
from nas.runtimes.runtime import Runtime
from nas.searching.budget import LatencyBudget
from search_spaces.errors import InputError
from search_spaces.layers import layer_keys
from search_spaces.references import UnknownReferenceError, reference
from search_spaces.space import SearchSpace
from tests.cases import QUICK, TINY_SPACE, Run, refused

SPACE = SearchSpace.from_dict({**TINY_SPACE, "classes": 1000})
# As deep as the ImageNet predictor needs it.
_STAGE = {"stride": 2, "depths": [1, 2], "expansions": [3]}
SMALL_SPACE = {
    "name": "small",
    "resolutions": [96],
    "stems": [{"channels": 16}],
    "stages": [{**_STAGE, "widths": [width]} for width in (24, 40, 80, 160)],
    "heads": [{"conv_channels": 960, "hidden_channels": 1280}],
}
MINE = reference("mobilenet_v2_075", 16)


def _table() -> LatencyTable:
    board = Hardware("rpi4", measured_here=False, estimate="rpi4")
    return estimated_table(board, sorted(set(layer_keys(MINE)), key=str), Runtime())


def _measured() -> LatencyTable:
    estimated = _table()
    entries = {key: Entry(each.latency_ms, 0.01, 5, "measured") for key, each in estimated.entries.items()}
    return LatencyTable(estimated.header, entries).with_entries({}, statistic="fastest_two_thirds")


def test_milliseconds_on_an_estimate_keep_its_error_free() -> None:
    error = _table().estimate_error
    assert error is not None
    assert 0.05 < error < 0.07  # cross-validated, see results/boards.md
    twenty = LatencyBudget.read("20 ms", None, SPACE, None)
    assert twenty.bound_ms(_table()) == pytest.approx(20 * (1 - error))
    assert twenty.bound_ms(_measured()) == 20
    assert LatencyBudget.read("20", 0.0, SPACE, None).bound_ms(_table()) == 20
    assert LatencyBudget.read("20", 0.25, SPACE, None).bound_ms(_measured()) == 15
    assert LatencyBudget.read(None, None, SPACE, None).bound_ms(_table()) is None


def test_a_network_of_ones_own_gives_the_budget_without_a_margin(tmp_path: Path) -> None:
    path = tmp_path / "my_net.yaml"
    path.write_text(MINE.to_yaml())
    budget = LatencyBudget.read(str(path), None, SPACE, None)
    assert (budget.name, budget.architecture) == ("my_net", MINE)
    # An estimate that is off in its level is so for the network and for the candidates.
    assert budget.bound_ms(_table()) == _table().latency(MINE).latency_ms
    asked = LatencyBudget.read(str(path), 0.1, SPACE, None)
    assert asked.bound_ms(_table()) == pytest.approx(0.9 * _table().latency(MINE).latency_ms)
    assert LatencyBudget.read("MobileNet-V2-075", None, SPACE, 16).name == "mobilenet_v2_075"


def test_networks_of_torchvision_and_timm_give_the_budget() -> None:
    budget = LatencyBudget.read("torchvision:ResNet18", None, SPACE, None)
    assert budget.name == "torchvision:resnet18"
    assert budget.bound_ms(_measured(), timed_ms=12.5) == 12.5
    with pytest.raises(ForeignNetworkError, match=r"did you mean torchvision:resnet18\?"):
        LatencyBudget.read("torchvision:resnet19", None, SPACE, None)
    with pytest.raises(
        UnknownReferenceError, match=r"neither a number of milliseconds .write 20.*_075.*_r192"
    ):
        LatencyBudget.read("mobilenet_v9", None, SPACE, None)


def test_what_cannot_be_timed_is_said_before_anything_is_measured() -> None:
    budget = LatencyBudget.read("torchvision:resnet18", None, SPACE, None)
    assert budget.foreign is not None
    check_runnable([budget.foreign], "host", True, Runtime("torch"))
    with pytest.raises(InputError, match=r"hardware=rpi4 is another: leave it out"):
        check_runnable([budget.foreign], "rpi4", False, Runtime())
    with pytest.raises(InputError, match=r"onnxruntime \(fp32\) or torch, not litert"):
        check_runnable([budget.foreign], "host", True, Runtime("litert"))


@pytest.mark.slow
def test_a_search_says_the_margin_it_keeps(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SMALL_SPACE))
    largest = SearchSpace.from_dict(SMALL_SPACE).compose(lambda _, choices: choices[-1])
    (tmp_path / "my_net.yaml").write_text(largest.to_yaml())
    asked = ["hardware=rpi4", "search_space=tiny.yaml", "search.trials=3", "search.screen=0"]
    asked += ["search.references=[my_net.yaml]"]
    outcome = run("search", *asked, "search.budget_ms=20", "study.name=a")
    assert outcome.code == 0, outcome
    assert "% of it kept free for the error of the estimate (search.budget_margin)" in outcome.out
    report = report_of(read_study(tmp_path / "results" / "a"))
    assert report.budget_ms == pytest.approx(20 * (1 - report.provenance.budget_margin))
    assert "20.0 ms less 5." in (tmp_path / "results" / "a" / "summary.md").read_text()
    refused(run("search", *asked, "search.budget_ms=20", "search.budget_margin=1"), "search.budget_margin")
    timed = ["search.budget_ms=torchvision:resnet18", "study.name=b"]
    refused(run("search", *asked, *timed), "torchvision:resnet18", "hardware=rpi4 is another")
    assert not (tmp_path / "results" / "b").exists()
    own = ["search.budget_ms=my_net.yaml", "study.name=c", "search.refine=netadapt"]
    outcome = run("search", *asked, *own, "search.refine_from=my_net.yaml", "search.refine_to_ms=5")
    assert outcome.code == 0, outcome
    assert "NetAdapt: " in outcome.out
    report = report_of(read_study(tmp_path / "results" / "c"))
    assert report.answers[0].reference.name == "my_net"
    outside = [*own, "search.refine_from=mobilenet_v2"]
    refused(run("search", *asked, *outside), "search.refine_from=mobilenet_v2 is not in the space 'small'")
    wrong = [*own, "search.refine_from=torchvision:resnet18"]
    refused(run("search", *asked, *wrong), "search.refine_from=torchvision:resnet18", "block table's file")


@pytest.mark.slow
def test_a_network_of_torchvision_is_timed_once_and_bounds_the_search(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY_SPACE))
    asked = [*QUICK, "search_space=tiny.yaml", "study.name=a", "runtime=torch", "search.end_to_end=0"]
    asked += ["search.budget_ms=torchvision:squeezenet1_1"]
    outcome = run("search", *asked)
    assert outcome.code == 0, outcome
    first = report_of(read_study(tmp_path / "results" / "a"))
    (timed,) = (each for each in first.references if each.name == "torchvision:squeezenet1_1")
    assert first.budget_ms == pytest.approx(timed.latency_ms)
    assert not (tmp_path / "results" / "a" / "torchvision.jsonl").exists()
    again = run("search", *asked, "search.trials=6")
    assert again.code == 0, again
    assert "timing torchvision" not in again.out
    assert report_of(read_study(tmp_path / "results" / "a")).budget_ms == first.budget_ms
