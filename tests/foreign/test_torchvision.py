import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nas.devices.device import LocalTarget
from nas.foreign.network import ForeignNetworkError
from nas.foreign.timing import measure_end_to_end
from nas.foreign.torchvision import TorchvisionNetwork, is_torchvision, torchvision_network
from nas.latency.hardware import Hardware
from nas.latency.plan import TableEffort
from nas.latency.source import LatencySource
from nas.latency.table import Entry, LatencyTable, TableHeader
from nas.measuring.conditions import cpu_model
from nas.page.payload import payload
from nas.page.reading import report_of
from nas.page.sentences import gain, saving
from nas.runtimes.runtime import Runtime
from nas.searching import timing
from nas.study.published import PUBLISHED, publish, publish_tables
from nas.study.trial import KnownLatency, remeasure
from search_spaces.layers import layer_keys
from search_spaces.references import reference
from tests.cases import MadeUpLatency
from tests.page.report_cases import made_up_study, writable


def table(anchor_ms: float | None, device: str = cpu_model()) -> LatencyTable:
    sessions = () if anchor_ms is None else ({"anchor_ms": anchor_ms},)
    return LatencyTable(
        TableHeader("host", device, "torch", "2", "fp32", 1, "2026-01-01", sessions=sessions), {}
    )


def test_metadata_are_those_of_the_default_weights() -> None:
    # https://docs.pytorch.org/vision/stable/models.html: ResNet50_Weights.IMAGENET1K_V2
    found = torchvision_network("torchvision:resnet50")
    assert (found.weights, found.top1) == ("IMAGENET1K_V2", 80.858)
    assert (found.parameters, found.macs, found.resolution) == (25_557_032, 4_089_000_000, 224)
    assert sum(each.numel() for each in found.build().parameters()) == found.parameters


def test_auxiliary_classifiers_are_left_out() -> None:
    assert not [
        name
        for name, _ in torchvision_network("torchvision:googlenet").build().named_modules()
        if "aux" in name
    ]


def test_names_are_told_apart_and_unknown_ones_refused() -> None:
    assert is_torchvision("torchvision:resnet50")
    assert not is_torchvision("mobilenet_v2")
    with pytest.raises(ForeignNetworkError, match=r"'torchvision:resnet51'.*resnet50"):
        torchvision_network("torchvision:resnet51")


@pytest.mark.usefixtures("unsteady_machine")
def test_latency_is_told_at_the_level_of_the_table(tmp_path: Path) -> None:
    references = [torchvision_network("torchvision:squeezenet1_1")]
    target = LocalTarget(Runtime("torch"))
    journal = tmp_path / "rounds.jsonl"
    (once,) = measure_end_to_end(references, table(1.0), target, journal, rounds=3).values()
    # The journal holds all rounds: a table of a machine half as fast doubles the same samples.
    (twice,) = measure_end_to_end(references, table(2.0), target, journal, rounds=3).values()
    _, *rounds = map(json.loads, journal.read_text().splitlines())
    samples_ms = sorted(each["samples_ms"][0] for each in rounds)[: len(rounds) * 2 // 3]
    anchor_ms = np.median([np.median(each["anchor_ms"]) for each in rounds])
    assert once == pytest.approx(np.mean(samples_ms) / anchor_ms)
    assert twice == pytest.approx(2 * once)


def test_layers_of_the_table_tell_its_level_better_than_the_anchor(tmp_path: Path) -> None:
    references = [torchvision_network("torchvision:squeezenet1_1")]
    target = LocalTarget(Runtime("torch"))
    keys = layer_keys(reference("mobilenet_v3_small_050", 32, 10))

    def linked(factor: float) -> LatencyTable:
        entries = {key: Entry(factor, 0.0, 3, "measured") for key in keys}
        return LatencyTable(table(1.0).header, entries)

    found = [
        measure_end_to_end(references, linked(factor), target, tmp_path / "rounds.jsonl", rounds=3)
        for factor in (1.0, 3.0)
    ]
    # The anchor says the same of both tables, their layers that the second machine took three times as long.
    assert found[1]["torchvision:squeezenet1_1"] == pytest.approx(3 * found[0]["torchvision:squeezenet1_1"])


@pytest.mark.slow
def test_runs_in_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    references = [torchvision_network("torchvision:squeezenet1_1")]
    target = LocalTarget(Runtime())
    found = measure_end_to_end(references, table(1.0), target, tmp_path / "rounds.jsonl", rounds=3)
    # Of the anchor, MobileNetV3-Small, which has a sixth of its operations and was timed in the same rounds.
    assert 1.5 < found["torchvision:squeezenet1_1"] < 30


def test_refuses_what_would_not_compare(tmp_path: Path) -> None:
    references = [torchvision_network("torchvision:squeezenet1_1")]
    target = LocalTarget(Runtime("torch"))
    with pytest.raises(ForeignNetworkError, match="this one is estimated"):
        measure_end_to_end(references, table(None), target, tmp_path / "j")
    with pytest.raises(ForeignNetworkError, match=r"table is of Raspberry Pi 4; leave torchv.* out"):
        measure_end_to_end(references, table(1.0, "Raspberry Pi 4"), target, tmp_path / "j")
    with pytest.raises(ForeignNetworkError, match=r"onnxruntime \(int8\)"):
        measure_end_to_end(references, table(1.0), LocalTarget(Runtime(precision="int8")), tmp_path / "j")


def test_stands_beside_the_front_as_published(tmp_path: Path) -> None:
    made_up_study(tmp_path / "s", trials=5)
    study = writable(tmp_path / "s")
    perfect = TorchvisionNetwork("torchvision:perfect", "V1", 99.0, 1000, 100, 224)
    before = report_of(study)
    publish(study, [perfect], {"torchvision:perfect": 0.01})
    after = report_of(study)
    assert after.front == before.front
    assert after.hypervolume == before.hypervolume
    (reference,) = (each for each in after.references if each.name == "torchvision:perfect")
    assert (reference.accuracy_source, reference.latency_source) == ("published", "measured")
    (answer,) = (each for each in after.answers if each.reference == reference)
    assert (gain(answer), saving(answer)) == ("nothing found is as fast", "nothing found is as accurate")


def test_tables_that_nothing_here_judges_stand_beside_the_front_and_are_timed(tmp_path: Path) -> None:
    made_up_study(tmp_path / "s", trials=5)
    study = writable(tmp_path / "s")
    publish(
        study,
        [TorchvisionNetwork("torchvision:perfect", "V1", 99.0, 1000, 100, 224)],
        {"torchvision:perfect": 9},
    )
    before = report_of(study)
    small = reference("mobilenetv4_conv_small")
    publish_tables(study, {"mobilenetv4_conv_small": small}, MadeUpLatency())
    after = report_of(study)
    assert after.front == before.front
    found = {each.name: each for each in after.references if each.accuracy_source == "published"}
    assert set(found) == {"torchvision:perfect", "mobilenetv4_conv_small"}
    ours = found["mobilenetv4_conv_small"]
    assert (ours.top1, ours.parameters, ours.architecture) == (73.8, 3_774_024, small)
    assert ours.latency_ms == MadeUpLatency().latency(small).latency_ms
    assert after.worth_timing(2)[small.id] == small
    remeasure(study, {small.id: KnownLatency(4.5, "measured", p90_ms=5.0, energy_mj=61.25)})
    measured = report_of(study)
    (timed,) = (each for each in measured.references if each.id == small.id)
    assert (timed.latency_ms, timed.latency_source, timed.p90_ms) == (4.5, "measured", 5.0)
    frame = measured.frame()
    assert frame.energy_mj.dropna().tolist() == [61.25]
    assert f'"energies_mj":{{"{measured.positions[timed.trial]}":61.25}}' in payload([measured])
    study.set_user_attr(PUBLISHED, [1])  # of a study that somebody made up
    publish_tables(study, {"mobilenetv4_conv_small": small}, MadeUpLatency())
    assert [*study.user_attrs[PUBLISHED]] == ["mobilenetv4_conv_small"]


def test_a_search_times_them_in_as_many_rounds_as_its_layers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[object, ...]] = []

    def measured(*arguments: object) -> dict[str, float]:
        asked.append(arguments[2:])
        return {"torchvision:resnet50": 2.0}

    monkeypatch.setattr(timing, "measure_end_to_end", measured)
    board = Hardware("host", True, affinity=(0,))
    source = LatencySource(board, Runtime("torch"), tmp_path, TableEffort(seed=3), 7, nullcontext, print)  # type: ignore[arg-type]
    wanted = [torchvision_network("torchvision:resnet50")]
    request: Any = SimpleNamespace(foreign=wanted, latencies=source, folder=tmp_path)
    assert timing.time_foreign(request, table(1.0), {}) == {"torchvision:resnet50": 2.0}
    ((target, _, rounds),) = asked
    assert isinstance(target, LocalTarget)
    # On the cores that layers are timed on, too.
    assert (rounds, target.seed, target.affinity) == (7, 3, (0,))
