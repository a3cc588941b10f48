"""What a runtime or its converter does not take is named and left out; everything else goes on."""

import csv
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nas.devices.device import ANCHOR, LocalTarget
from nas.devices.kit import KitSettings, read_result, write_kit
from nas.latency.deployment import measured_deployments
from nas.latency.hardware import import_result
from nas.latency.recovery import recovered
from nas.latency.sessions import traits
from nas.latency.table import Entry, LatencyTable, TableHeader
from nas.measuring.models import Model
from nas.measuring.progress import ProfileProgress
from nas.measuring.rounds import Journal, MeasurementError, RefusedError, Round, Runner, Schedule, measure
from nas.page.reading import read_study, report_of
from nas.runtimes.runtime import ENGINES, Runtime
from nas.runtimes.subject import CannotRunError, Precision, Subject
from nas.saving import SaveError
from nas.study.neighbourhood import BudgetError, Neighbourhood
from search_spaces.architecture import Architecture
from search_spaces.blocks import Block
from search_spaces.layers import LayerKey, layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from tests.cases import QUICK, TINY_SPACE, Run, refused, small_space

pytestmark = pytest.mark.usefixtures("unsteady_machine")

NETWORK = reference("mobilenet_v3_small", 64, 10)
LAYERS: list[Subject] = [*dict.fromkeys(layer_keys(NETWORK)[:8])]


def blocks_of(subject: object) -> tuple[Block, ...]:
    if isinstance(subject, Architecture):
        return subject.blocks
    return (subject.part,) if isinstance(subject, LayerKey) and isinstance(subject.part, Block) else ()


def refuses(subject: Subject) -> bool:
    """Blocks with hard swish; but the anchor, without which nothing is measured, runs."""
    return subject != ANCHOR and any(each.activation == "hswish" for each in blocks_of(subject))


class Asked(list[Subject]):
    """What an engine was asked to run of what it refuses."""


@pytest.fixture
def without_hswish(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """ONNX Runtime, but for blocks with hard swish."""
    whole, asked = ENGINES["onnxruntime"], Asked()

    def runner(subject: Subject, precision: Precision, threads: int) -> Runner:
        if refuses(subject):
            asked.append(subject)
            raise TypeError("no operator\nfor HardSwish")
        assert whole.runner
        return whole.runner(subject, precision, threads)

    def model(subject: Subject, precision: Precision) -> Model:
        if refuses(subject):
            raise TypeError("no operator\nfor HardSwish")
        assert whole.model
        return whole.model(subject, precision)

    monkeypatch.setitem(ENGINES, "onnxruntime", replace(whole, runner=runner, model=model))
    return asked


def test_an_operator_that_is_lacked_is_named_with_its_layer(without_hswish: Asked) -> None:
    (key, *_) = [each for each in LAYERS if refuses(each)]
    for ask in (Runtime().runner, Runtime().model):
        with pytest.raises(CannotRunError, match=f"cannot run layer {key}: no operator for HardSwish; take"):
            ask(key)


def test_what_is_refused_is_left_out_of_a_measurement_and_not_tried_again(
    without_hswish: Asked, tmp_path: Path
) -> None:
    subjects = [*LAYERS, NETWORK]
    journal = tmp_path / "rounds.jsonl"
    for _ in range(2):
        measured = LocalTarget(Runtime()).measure(subjects, 2, journal)
        assert set(measured.subjects) == {each for each in subjects if not refuses(each)}
        assert set(measured.refused.values()) == {"no operator for HardSwish"}
        assert len(measured.refused) == len(subjects) - len(measured.subjects)
    assert len(without_hswish) == len(set(without_hswish))


def test_what_a_deployment_refuses_is_said_and_the_others_are_timed(
    without_hswish: Asked, tmp_path: Path
) -> None:
    networks = {"plain": reference("mobilenet_v1_025", 32, 10), "v3": NETWORK}
    prepared: list[tuple[int, int]] = []
    progress = ProfileProgress(prepared=lambda *done: prepared.append(done))
    asked = networks, [Runtime()], tmp_path, 4, 0, progress
    with pytest.raises(SaveError), measured_deployments(*asked) as (first, _):
        raise SaveError("cannot write deployments.csv: No space left on device")
    with measured_deployments(*asked) as (found, refused):
        assert found == first  # from the same rounds
    assert [each.network for each in found] == ["plain"]
    assert {label: "no operator for HardSwish" in reason for label, reason in refused.items()} == {
        "v3 onnxruntime fp32 1": True
    }
    assert prepared == [(1, 2), (2, 2)]
    assert not list(tmp_path.iterdir())
    none = measured_deployments({"v3": NETWORK}, [Runtime()], tmp_path, 4, 0, progress)
    with (
        pytest.raises(MeasurementError, match="nothing of this can be run here, beginning with v3 onnx"),
        none,
    ):
        pass


@pytest.mark.parametrize("at", ["loading", "running"])
def test_models_that_fail_when_they_are_first_loaded_or_run_are_left_out(tmp_path: Path, at: str) -> None:
    def fails() -> None:
        raise ValueError("status -100")

    def load(name: str) -> Runner:
        if name == "bad" and at == "loading":
            raise RefusedError("status -100")
        return fails if name == "bad" else lambda: None

    journal = Journal(tmp_path / "rounds.jsonl", ["good", "bad", "fine"], {})
    kept = measure(load, lambda: None, journal, Schedule(4))
    assert journal.names == ("good", "fine")
    assert journal.refused == {"bad": "status -100"}
    assert {len(each.samples_ms) for each in kept} == {2}
    again = Journal(tmp_path / "rounds.jsonl", ["good", "bad", "fine"], {})
    assert again.refused == journal.refused
    assert len(again.rounds) == 4
    with pytest.raises(MeasurementError, match="nothing of this can be run here, beginning with bad: status"):
        measure(load, lambda: None, Journal(tmp_path / "other.jsonl", ["bad"], {}), Schedule(4))


def test_a_model_that_does_not_load_again_is_no_refusal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rounds.jsonl", ["good", "bad"], {})
    journal.append(Round([1.0, 1.0], [1.0], {}))
    with pytest.raises(MeasurementError, match="bad cannot be loaded any more: out of handles"):
        journal.leave_out("bad", "out of handles")


def table_without(refused: Callable[[LayerKey], bool], space: SearchSpace) -> LatencyTable:
    from search_spaces.layers import reachable_layer_keys

    header = TableHeader("host", "cpu", "onnxruntime", "1", "fp32", 1, "2026-01-01")
    keys = sorted(reachable_layer_keys(space), key=str)
    table = LatencyTable(header, {key: Entry(1.0, 0.1, 4, "measured") for key in keys if not refused(key)})
    return table.with_entries({key: Entry(float("inf"), 0.0, 0, "refused") for key in keys if refused(key)})


def test_a_table_keeps_what_was_refused(tmp_path: Path) -> None:
    space = small_space()
    table = table_without(lambda key: "_se_" in str(key), space)
    table.save(tmp_path)
    read = LatencyTable.load(tmp_path)
    assert read.entries == table.entries
    assert read.refused(read.entries)
    text = (tmp_path / "table.csv").read_text()
    assert text.count(",inf,0,0,refused\n") == len(read.refused(read.entries))


def test_no_candidate_has_a_layer_that_is_refused() -> None:
    space = small_space()
    table = table_without(lambda key: "_se_" in str(key) or "_k5_" in str(key), space)
    neighbourhood = Neighbourhood(space, table)
    fastest = neighbourhood.fastest()
    assert not fastest.latency.refused
    members = list(neighbourhood.members())
    assert 0 < len(members) < space.size
    for each in members:
        assert all(block.kernel != 5 and not block.se for block in each.architecture.blocks)
    assert not neighbourhood.slowest().latency.refused


def test_a_space_of_which_nothing_runs_says_so_before_anything_is_evaluated() -> None:
    table = table_without(lambda key: "head_" in str(key), small_space())
    with pytest.raises(BudgetError, match=r"nothing in the space 'small' can be run: .* e\.g\. head_"):
        Neighbourhood(small_space(), table).fastest()


def test_layers_of_a_kind_have_traits_in_common() -> None:
    texts = ("ir_14_i16_x48_o16_k5_s1_se_hswish", "ir_7_i32_x96_o32_k5_s1_se_hswish")
    assert {traits(LayerKey.parse(each)) for each in texts} == {"ir_N_iN_xN_oN_k5_s1_se_hswish"}
    assert traits(LayerKey.parse("ir_14_i16_x0_o16_k3_s1_relu6")) == "ir_N_iN_x0_oN_k3_s1_relu6"
    assert traits(LayerKey.parse("head_4_i32_c96x1_h64_n10_hswish")) == "head_N_iN_cNx1_hN_nN_hswish"


@pytest.mark.slow
def test_profile_validate_and_search_go_on_without_what_is_refused(
    without_hswish: Asked, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY_SPACE, "classes": 10}))
    settings = ["search_space=tiny.yaml", "profile.max_keys=40", "profile.networks=4", "profile.rounds=4"]
    outcome = run("profile", *settings)
    assert outcome.code == 0, outcome
    assert "which no network of a search will have, e.g. " in outcome.out
    assert "no operator for HardSwish" in outcome.out
    folder = tmp_path / "results" / "latency" / "host-onnxruntime-fp32-1t"
    rows = list(csv.DictReader((folder / "table.csv").open()))
    refused = {row["key"] for row in rows if row["source"] == "refused"}
    assert refused
    assert all(refuses(LayerKey.parse(each)) for each in refused)
    assert not any(refuses(LayerKey.parse(row["key"])) for row in rows if row["source"] == "measured")
    hopeless = {traits(LayerKey.parse(each)) for each in refused}
    others = {traits(LayerKey.parse(row["key"])) for row in rows if row["source"] == "predicted"}
    assert not hopeless & others
    without_hswish.clear()
    card = run("validate", *settings, "validate.networks=6", "validate.rounds=4")
    assert card.code == 0, card
    found = run("search", "search_space=tiny.yaml", *QUICK)
    assert found.code == 0, found
    assert "the search goes on without networks that have them" in found.err + found.out
    assert "mobilenet_v3_small_050 is left out: the runtime refuses its layer" in found.err + found.out
    assert not [each for each in without_hswish if isinstance(each, LayerKey) and str(each) in refused]
    report = report_of(read_study(tmp_path / "results" / "host-tiny-synthetic"), importances=False)
    assert report.front
    assert not any(refuses(each.architecture) for each in report.front if each.architecture)


def test_a_board_goes_on_without_what_the_converter_or_the_board_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ENGINES["onnxruntime"]
    not_converted, not_run = LAYERS[1], LAYERS[3]

    def model(subject: Subject, precision: Precision) -> Model:
        assert whole.model
        if subject == not_converted:
            raise TypeError("no such operator")
        made = whole.model(subject, precision)
        return made._replace(skeleton=b"rubbish") if subject == not_run else made

    monkeypatch.setitem(ENGINES, "onnxruntime", replace(whole, model=model))
    kit = tmp_path / "rpi4-kit.zip"
    write_kit(kit, KitSettings("rpi4", Runtime(), 2), [LAYERS])
    done = subprocess.run(
        [sys.executable, str(kit), "--folder", str(tmp_path)], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done
    assert f"2 of {len(LAYERS)} left out, which the runtime refuses: " in done.stdout
    result = read_result(tmp_path / "rpi4-kit-result.jsonl", "rpi4", Runtime())
    assert result.problems == ()
    (group,) = result.groups
    assert set(LAYERS) - set(group.measurement.subjects) == {not_converted, not_run}
    assert group.measurement.refused[str(not_converted)] == "no such operator"
    assert "rotobuf" in group.measurement.refused[str(not_run)]
    folder = tmp_path / "table"
    table = import_result(result, Runtime(), "rpi4", folder, [], None)
    assert set(table.refused(table.entries)) == {not_converted, not_run}
    assert table.refusal(LayerKey.parse(str(not_converted))) == "no such operator"
    # The samples alone bring it back.
    (folder / "table.csv").write_text("torn")
    again = recovered(folder, "rpi4", Runtime())
    assert again is not None
    assert set(again.refused(again.entries)) == {not_converted, not_run}
    assert json.loads((folder / "table.json").read_text())["entries"] == len(again.entries)


def test_a_runtime_that_is_not_here_is_refused_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = importlib.metadata.version

    def version(package: str) -> str:
        if package == "executorch":
            raise importlib.metadata.PackageNotFoundError(package)
        return whole(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    outcome = run("validate", "runtime=executorch")
    refused(outcome, "executorch is not installed; install it with: pip install 'mobilenet-nas[executorch]'")
    assert not outcome.out
    board = ["hardware=rpi5", "runtime=torch"]
    for way in ("hardware.host=pi@board", "validate.kit=kit.zip"):
        outcome = run("validate", *board, way)
        refused(outcome, "torch cannot be sent to a board; use runtime=onnxruntime or runtime=litert or")
        assert not outcome.out


def test_a_table_of_another_runtime_and_precision_is_refused(run: Run, tmp_path: Path) -> None:
    table = table_without(lambda key: False, small_space())
    other = replace(table.header, runtime="litert", runtime_version="2.3.0")
    LatencyTable(other, table.entries).save(tmp_path / "results" / "latency" / "host-onnxruntime-int8-1t")
    outcome = run("profile", "runtime.precision=int8")
    refused(outcome, "host-onnxruntime-int8-1t is for ", "; runtime litert, not onnxruntime;")
    refused(outcome, "precision fp32, not int8; move it away and measure anew with: python -m nas.profile")
