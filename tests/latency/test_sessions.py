import random
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from nas.latency.calibration import FEATURES, Calibration, layer_features
from nas.latency.end_to_end import time_networks
from nas.latency.layer_predictor import LayerPredictor
from nas.latency.plan import Plan, TableEffort, make_plan, seconds_needed
from nas.latency.provision import measure_layers, ready_table, reference_architectures
from nas.latency.sessions import Bench, features_of, load_networks, profile
from nas.latency.table import LatencyTable
from nas.latency.validation import card_problem, fresh_networks, load_card, save, validate
from nas.measuring.progress import ProfileProgress
from nas.measuring.rounds import Journal, Runner
from nas.runtimes.runtime import ENGINES, Runtime, RuntimeName
from nas.runtimes.subject import Precision, Subject
from search_spaces.blocks import ArchitectureError
from search_spaces.errors import InputError
from search_spaces.layers import layer_keys, reachable_layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from tests.cases import FakeTarget, assert_drawn, layer_ms, network_ms

SILENT = ProfileProgress()


@pytest.fixture(scope="module")
def small_space(mobilenet_space: SearchSpace) -> SearchSpace:
    return replace(mobilenet_space.restricted([96]), width_multipliers=(1.0,))


@lru_cache
def plan_of(space: SearchSpace, max_keys: int | None, networks: int) -> Plan:
    """The plan that many tests measure."""
    return make_plan(space, [], TableEffort(max_keys, networks))


@pytest.mark.parametrize("stem", ["my\u00a0net", "a" * 101])
def test_a_network_whose_name_no_study_takes_is_refused(small_space: SearchSpace, stem: str) -> None:
    with pytest.raises(
        ArchitectureError, match=r"^the name of .+ holds what does not show, or .+: rename it$"
    ):
        reference_architectures(small_space, [f"{stem}.yaml"])


def test_a_plan_without_limit_measures_every_reachable_layer(small_space: SearchSpace) -> None:
    plan = plan_of(small_space, None, 5)
    assert set(plan.keys) >= reachable_layer_keys(small_space)
    assert {key for network in plan.networks for key in layer_keys(network)} <= set(plan.keys)
    assert not plan.predicted


def test_a_limited_plan_takes_references_first_and_predicts_the_rest(small_space: SearchSpace) -> None:
    references = list(reference_architectures(small_space).values())
    plan = make_plan(small_space, references, TableEffort(300, 10))
    assert len(plan.keys) == len(set(plan.keys)) == 300
    for architecture in references:
        assert set(layer_keys(architecture)) <= set(plan.keys)
    assert reachable_layer_keys(small_space) <= {*plan.keys, *plan.predicted}
    assert not set(plan.keys) & set(plan.predicted)
    assert len(plan.networks) >= 10 + 8


def test_networks_are_timed_at_the_level_of_the_table(small_space: SearchSpace, tmp_path: Path) -> None:
    target = FakeTarget(noise=0.01)
    plan = plan_of(small_space, 200, 30)
    bench = Bench(target, Runtime(), "fake", tmp_path, 10)
    table = profile(bench, plan)
    networks = fresh_networks(small_space, 5, 0, plan.networks)
    target.speed = 0.9
    timed = time_networks(networks, table, replace(bench, rounds=20), load_networks(tmp_path))
    assert timed.drift == pytest.approx(1 / 0.9 - 1, abs=0.01)
    assert timed.journal.exists()
    for network, each in zip(networks, timed.networks, strict=True):
        record = each.record
        assert record.architecture == network
        assert record.p50_ms == pytest.approx(network_ms(network), rel=0.02)
        assert record.p50_ms <= record.p90_ms <= record.p99_ms
        assert each.error_ms < 0.02 * record.p50_ms


def test_a_plan_spreads_over_sizes_and_kinds(small_space: SearchSpace) -> None:
    plan = plan_of(small_space, 300, 4)
    reachable = reachable_layer_keys(small_space)
    for attribute in ("size", "in_channels"):
        values = {getattr(key, attribute) for key in reachable}
        assert {getattr(key, attribute) for key in plan.keys} >= {min(values), max(values)}
    kinds = {type(key.part) for key in plan.keys}
    assert len(kinds) == 3


def test_what_a_table_holds_is_not_measured_again(small_space: SearchSpace, tmp_path: Path) -> None:
    target = FakeTarget()
    first = plan_of(small_space, 100, 6)
    assert len(set(first.keys)) == 100
    table = profile(Bench(target, Runtime(), "fake", tmp_path, 4), first)
    again = make_plan(small_space, [], TableEffort(100, 6), table)
    assert not again.keys
    assert not again.networks
    more = make_plan(small_space, [], TableEffort(130, 6), table)
    assert len(more.keys) == 30
    assert not set(more.keys) & set(first.keys)


def test_calibration_finds_the_law_of_the_device(small_space: SearchSpace, tmp_path: Path) -> None:
    plan = plan_of(small_space, None, 40)
    table = profile(Bench(FakeTarget(noise=0.01), Runtime(), "fake", tmp_path, 20), plan)
    calibration = table.header.calibration
    assert calibration is not None
    assert calibration.uncorrected.mape > 0.1
    assert calibration.left_out.mape < 0.01
    for network in fresh_networks(small_space, 20, 0, plan.networks):
        assert table.latency(network).latency_ms == pytest.approx(network_ms(network), rel=0.03)
        assert table.latency(network).source == "table"


def test_leave_one_out_equals_fitting_without_the_network(small_space: SearchSpace, tmp_path: Path) -> None:
    plan = plan_of(small_space, None, 30)
    table = profile(Bench(FakeTarget(noise=0.05), Runtime(), "fake", tmp_path, 3), plan)
    networks = load_networks(tmp_path)
    features = features_of(table, [each.architecture for each in networks])
    actual = np.array([each.latency_ms for each in networks])
    errors = []
    for index in range(len(networks)):
        kept = np.arange(len(networks)) != index
        without = Calibration.fit(features[kept], actual[kept])
        errors.append(features[index] @ np.array(without.coefficients) / actual[index] - 1)
    whole = Calibration.fit(features, actual)
    # The scale of the ridge changes a little with each network left out.
    assert whole.left_out.mape == pytest.approx(np.abs(errors).mean(), rel=0.02)


@pytest.mark.parametrize(
    ("name", "precision", "fitted"),
    [("onnxruntime", "fp32", 10), ("onnxruntime", "int8", 2), ("litert", "fp32", 10), ("litert", "int8", 2)],
)
def test_borders_are_corrected_only_where_layers_pay_for_them(
    small_space: SearchSpace, tmp_path: Path, name: RuntimeName, precision: Precision, fitted: int
) -> None:
    plan = plan_of(small_space, None, 30)
    table = profile(Bench(FakeTarget(noise=0.05), Runtime(name, precision), "fake", tmp_path, 3), plan)
    assert table.header.calibration is not None
    assert np.count_nonzero(table.header.calibration.coefficients) == fitted


def test_shares_of_layers_add_up_to_the_network(small_space: SearchSpace, tmp_path: Path) -> None:
    plan = plan_of(small_space, None, 30)
    table = profile(Bench(FakeTarget(noise=0.02), Runtime(), "fake", tmp_path, 3), plan)
    calibration = table.header.calibration
    assert calibration is not None
    network = plan.networks[3]
    parts = [calibration.layer_ms(key, entry.latency_ms) for key, entry in table.layer_latencies(network)]
    assert sum(parts) == pytest.approx(table.latency(network).latency_ms)
    assert len(layer_features(layer_keys(network)[0])) == len(FEATURES) - 1


def test_gaps_are_filled_and_say_so(small_space: SearchSpace, tmp_path: Path) -> None:
    plan = plan_of(small_space, 250, 20)
    table = profile(Bench(FakeTarget(noise=0.005), Runtime(), "fake", tmp_path, 10), plan)
    assert table.header.gap_filling["measured"] == 250
    assert table.header.gap_filling["mean_error"] < 0.05
    errors = []
    for key in plan.predicted:
        entry = table.entries[key]
        assert entry.source == "predicted"
        assert entry.samples == 0
        errors.append(abs(entry.latency_ms / layer_ms(key) - 1))
    assert np.mean(errors) < 0.05
    assert LatencyTable.load(tmp_path).header.gap_filling == table.header.gap_filling


def test_predicted_layers_of_the_front_can_be_measured(small_space: SearchSpace, tmp_path: Path) -> None:
    target = FakeTarget(noise=0.005)
    plan = plan_of(small_space, 150, 20)
    table = profile(Bench(target, Runtime(), "fake", tmp_path, 6), plan)
    network = next(
        each for each in fresh_networks(small_space, 20, 0, ()) if table.latency(each).source == "predicted"
    )
    others = {key: entry for key, entry in table.entries.items() if key not in layer_keys(network)}
    # The machine is 10 % faster by now; the anchor ties both sessions together.
    target.speed = 1.1
    better = measure_layers(table, [network], Bench(target, Runtime(), "fake", tmp_path, 6))
    assert better.latency(network).source == "table"
    for key, entry in better.layer_latencies(network):
        assert entry.latency_ms == pytest.approx(layer_ms(key), rel=0.02)
    assert {key: better.entries[key] for key in others} == others
    assert better.header.calibration == table.header.calibration
    assert measure_layers(better, [network], Bench(target, Runtime(), "fake", tmp_path, 6)) is better


def test_an_interrupted_profile_measures_only_the_missing_rounds(
    small_space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(small_space, 50, 4)
    appended = Journal.append
    rounds = list[object]()

    def append(journal: Journal, measured: object) -> None:
        if len(rounds) == 3:
            raise KeyboardInterrupt
        rounds.append(measured)
        appended(journal, measured)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "append", append)
    with pytest.raises(KeyboardInterrupt):
        profile(Bench(FakeTarget(), Runtime(), "fake", tmp_path, 8), plan)
    assert not (tmp_path / "table.csv").exists()
    monkeypatch.setattr(Journal, "append", appended)
    table = profile(Bench(FakeTarget(), Runtime(), "fake", tmp_path, 8), plan)
    assert table.header.sessions[0]["rounds"] == 8
    (samples,) = tmp_path.glob("samples-*.jsonl")
    assert samples.read_text().count('"samples_ms"') == 8
    assert not list(tmp_path.glob("partial-*"))


def test_a_ready_table_is_measured_once(small_space: SearchSpace, tmp_path: Path) -> None:
    target = FakeTarget()
    said: list[str] = []
    references = list(reference_architectures(small_space).values())

    def ready(space: SearchSpace, max_keys: int) -> LatencyTable:
        bench = Bench(target, Runtime(), "fake", tmp_path, 4, SILENT, said.append)
        return ready_table(bench, space, references, TableEffort(max_keys, networks=8))

    ready(small_space, 150)
    assert target.asked > 150
    assert "no latency table yet: measuring 150 layers" in said[0]
    asked = target.asked
    ready(small_space, 150)
    assert target.asked == asked
    wider = small_space.restricted([96, 128])
    table = ready(wider, 200)
    assert "lacks layers of this space" in said[1]
    assert not table.missing(reachable_layer_keys(wider))


def test_a_validation_card_states_the_error(
    small_space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = FakeTarget(noise=0.01)
    plan = make_plan(small_space, [reference("mobilenet_v2", 96)], TableEffort(200, 30))
    bench = Bench(target, Runtime(), "fake", tmp_path, 10)
    table = profile(bench, plan)
    assert load_card(tmp_path) is None
    fresh = {each.id: each for each in fresh_networks(small_space, 15, 1, plan.networks)}
    assert not set(fresh.values()) & set(plan.networks)
    target.speed = 0.8
    shown = {"mobilenet_v2": reference("mobilenet_v2", 96)}

    def interrupt(done: int, wanted: int) -> None:
        raise KeyboardInterrupt

    # A validation of other networks goes its own way beside the rounds of an interrupted one.
    fewer = dict(list(fresh.items())[:8])
    with pytest.raises(KeyboardInterrupt):
        validate(table, fewer, shown, replace(bench, rounds=8, progress=ProfileProgress(measured=interrupt)))
    validation = validate(table, fresh, shown, replace(bench, rounds=8))
    # Its rounds are kept until the card and all beside it are written.
    monkeypatch.setattr("nas.latency.validation.write_together", Mock(side_effect=OSError("full")))
    with pytest.raises(OSError, match="full"):
        save(validation, tmp_path)
    monkeypatch.undo()
    assert validation.journal.exists()
    save(validation, tmp_path)
    assert not validation.journal.exists()
    card = load_card(tmp_path)
    assert card is not None
    assert card.to_dict() == validation.card.to_dict()
    assert card.calibrated.networks == 15
    assert card.calibrated.mape < 0.03 < card.uncorrected.mape
    assert card.drift == pytest.approx(0.25, abs=0.01)
    assert card.faults == ["the machine ran 25% slower"]
    assert not card.is_good
    assert "ran 25% slower" in card_problem(card, table)
    assert card_problem(replace(card, drift=0.02), table) == ""
    # A table that grew is the same; one measured anew is another.
    target.speed = 1.0
    more = make_plan(small_space, [], TableEffort(220, 30), table)
    grown = profile(replace(bench, rounds=8), Plan(more.keys, ()), table)
    assert len(grown.header.sessions) == 2
    assert card_problem(replace(card, drift=0.02), grown) == ""
    target.speed = 0.97
    anew = profile(replace(bench, folder=tmp_path / "anew"), plan)
    assert "stale: it was measured anew" in card_problem(card, anew)
    text = (tmp_path / "card.md").read_text()
    assert "| mobilenet_v2 | 60.3 | 3.50 | 56 |" in text
    assert_drawn(tmp_path / "validation.png")
    assert len((tmp_path / "validation.csv").read_text().splitlines()) == 1 + 16


def test_drift_is_told_by_networks_where_some_were_measured_before(
    small_space: SearchSpace, tmp_path: Path
) -> None:
    target = FakeTarget(noise=0.01)
    plan = plan_of(small_space, None, 30)
    bench = Bench(target, Runtime(), "fake", tmp_path, 10)
    table = profile(bench, plan)
    fresh = {each.id: each for each in fresh_networks(small_space, 10, 1, plan.networks)}
    target.speed, target.cold_caches = 0.8, 1.2
    known = load_networks(tmp_path)
    card = validate(table, fresh, {}, replace(bench, rounds=8), known).card
    assert card.drift == pytest.approx(0.25, abs=0.01)
    assert card.calibrated.networks == 10
    assert card.calibrated.mape < 0.02
    misled = validate(table, fresh, {}, replace(bench, rounds=8)).card
    assert misled.calibrated.bias > 0.1


def test_seconds_needed_grows_with_the_rounds(small_space: SearchSpace) -> None:
    plan = plan_of(small_space, 20, 2)
    runtime = Runtime()
    assert 0 < seconds_needed(runtime, plan, 5) < seconds_needed(runtime, plan, 5000)


def test_what_a_runtime_does_at_its_first_use_counts_once(
    small_space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(small_space, 20, 2)
    used = list[Subject]()
    now = [0.0]  # a clock that nothing else on the machine moves

    def takes(seconds: float) -> None:
        now[0] += seconds

    def runner(subject: Subject, precision: Precision, threads: int) -> Runner:
        takes(0.0 if used else 0.3)
        used.append(subject)
        return lambda: takes(1e-4)

    monkeypatch.setattr("nas.latency.plan.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setitem(ENGINES, "torch", replace(ENGINES["torch"], runner=runner))
    # One of eight layers tried, of twenty, in each of five loadings: 3.75 s if it counted every time.
    assert seconds_needed(Runtime("torch"), plan, 20) < 1.5


@pytest.mark.slow
def test_activations_that_cost_time_are_told_apart(small_space: SearchSpace) -> None:
    surcharge = {"relu": 1.0, "relu6": 1.1, "hswish": 1.3}
    blocks = sorted((key for key in reachable_layer_keys(small_space) if str(key).startswith("ir")), key=str)
    keys = random.Random(0).sample(blocks, 600)
    true_ms = {key: layer_ms(key) * surcharge[key.part.activation] for key in keys}
    known = set(keys[:300])
    filler = LayerPredictor({key: true_ms[key] for key in known})
    errors: dict[str, list[float]] = {name: [] for name in surcharge}
    for key, predicted in filler.predict([key for key in keys if key not in known]).items():
        errors[key.part.activation].append(predicted.latency_ms / true_ms[key] - 1)
    for name, found in errors.items():
        assert abs(np.mean(found)) < 0.01, name


def test_too_few_layers_to_predict_the_others_from_are_refused_first(small_space: SearchSpace) -> None:
    with pytest.raises(InputError, match=r"profile\.max_keys=5 measures 5 layers, but the others"):
        plan_of(small_space, 5, 1)
