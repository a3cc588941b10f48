import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nas.devices.device import LocalTarget, Measurement
from nas.devices.kit import Group, Result, ResultHeader, groups_of, read_result, write_kit
from nas.devices.ssh import SshTarget
from nas.latency.hardware import (
    Hardware,
    NoTableError,
    NothingNewError,
    estimated_table,
    import_result,
    table_without_measuring,
)
from nas.latency.preset import EstimatedLayers
from nas.latency.table import LatencyTable
from nas.measuring import conditions
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import Subject
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import JsonObject
from search_spaces.layers import LayerKey, layer_keys
from search_spaces.references import reference
from tests.cases import layer_ms

pytestmark = pytest.mark.usefixtures("unsteady_machine")

RUNTIME = Runtime()
RPI4 = Hardware("rpi4", measured_here=False, estimate="rpi4")
RPI5 = Hardware("rpi5", measured_here=False)
NETWORKS: list[Architecture] = [
    reference(f"mobilenet_v3_small_{width}", 64, 10) for width in ("050", "075", "100", "125")
]
KEYS: list[LayerKey] = list(dict.fromkeys(key for network in NETWORKS for key in layer_keys(network)))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, unsteady_machine: None) -> Path:
    """What a board sends back: two groups, of which the layers of the last are not all there."""
    folder = tmp_path_factory.mktemp("board")
    subjects: list[Subject] = [*KEYS[:-2], *NETWORKS]
    write_kit(folder / "kit.zip", RPI4.kit_settings(RUNTIME, rounds=2, seed=0), groups_of(subjects, 39))
    subprocess.run([sys.executable, "kit.zip"], cwd=folder, check=True, capture_output=True)
    return folder / "kit-result.jsonl"


def test_a_result_becomes_a_calibrated_table(result: Path, tmp_path: Path) -> None:
    read = read_result(result, "rpi4", RUNTIME)
    assert len(read.groups) == 2
    made = import_result(read, RUNTIME, "rpi4", tmp_path, KEYS)
    table = LatencyTable.load(tmp_path)
    sources = {key: entry.source for key, entry in table.entries.items()}
    assert sources == {key: entry.source for key, entry in made.entries.items()}
    for key, entry in made.entries.items():
        assert table.entries[key].latency_ms == pytest.approx(entry.latency_ms, rel=1e-5)
    assert [key for key in KEYS if sources[key] == "predicted"] == KEYS[-2:]
    assert set(sources.values()) == {"measured", "predicted"}
    assert table.header.calibration is not None
    assert len(table.header.sessions) == 2
    assert (tmp_path / "samples-2.jsonl").read_text().count("samples_ms") == 2
    parts = [
        table.header.calibration.layer_ms(key, entry.latency_ms)
        for key, entry in table.layer_latencies(NETWORKS[0])
    ]
    assert table.latency(NETWORKS[0]).latency_ms == pytest.approx(sum(parts))


def test_groups_of_a_kit_are_tied_together_by_layers_both_measured(tmp_path: Path) -> None:
    groups = groups_of(KEYS, 30)
    shared = set(groups[0]).intersection(*groups[1:])
    assert len(shared) >= 10
    assert {key for group in groups for key in group} == set(KEYS)
    made = []
    for number, group in enumerate(groups):
        # The board is 20 % slower while it measures the second group, its anchor does not show it.
        speed = 1.2 if number == 1 else 1.0
        samples_ms = np.tile([layer_ms(key) * speed for key in group if isinstance(key, LayerKey)], (4, 1))
        record = {"kit": "k", "group": number, "anchor_ms": 5.0}
        made.append(Group(number, Measurement(tuple(group), samples_ms, np.full(4, 5.0), record), ""))
    board: JsonObject = {"cpu": "board", "runtime_version": "1"}
    header = ResultHeader("k", "rpi4", "onnxruntime", "fp32", 1, 4, len(groups), 1, {}, board)
    table = import_result(Result(header, tuple(made), ()), RUNTIME, "rpi4", tmp_path, [])
    for key in KEYS:
        assert table.entries[key].latency_ms == pytest.approx(layer_ms(key))


def test_a_result_is_imported_once_and_what_was_missing_later(result: Path, tmp_path: Path) -> None:
    lines = result.read_text().splitlines(keepends=True)
    second = next(number for number, line in enumerate(lines[2:], start=2) if '"names"' in line)
    half = tmp_path / "half.jsonl"
    half.write_text("".join(lines[:second]))
    table = import_result(read_result(half, "rpi4", RUNTIME), RUNTIME, "rpi4", tmp_path / "table", [])
    assert len(table.header.sessions) == 1
    whole = read_result(result, "rpi4", RUNTIME)
    table = import_result(whole, RUNTIME, "rpi4", tmp_path / "table", [], table)
    assert [session["group"] for session in table.header.sessions] == [0, 1]
    with pytest.raises(NothingNewError, match="in the table of rpi4 already"):
        import_result(whole, RUNTIME, "rpi4", tmp_path / "table", [], table)


def test_without_a_table_everything_is_labelled_estimated(tmp_path: Path) -> None:
    table = table_without_measuring(RPI4, KEYS, RUNTIME, tmp_path)
    assert {entry.source for entry in table.entries.values()} == {"estimated"}
    latency = table.latency(NETWORKS[0])
    assert latency.source == "estimated"
    estimate = EstimatedLayers.load("rpi4")
    assert latency.latency_ms == pytest.approx(sum(map(estimate.layer_ms, layer_keys(NETWORKS[0]))))
    assert "ESTIMATED, 6 % off, at worst 10 %" in table.header.title
    assert "hardware.host=USER@BOARD" in table.profile_command
    assert "profile.kit=rpi4-kit.zip" in table.profile_command
    assert list(tmp_path.iterdir()) == []


def test_a_measured_table_takes_the_place_of_the_estimate(result: Path, tmp_path: Path) -> None:
    import_result(read_result(result, "rpi4", RUNTIME), RUNTIME, "rpi4", tmp_path, [])
    table = table_without_measuring(RPI4, KEYS, RUNTIME, tmp_path)
    assert table.entries[KEYS[0]].source == "measured"
    assert table.entries[KEYS[-1]].source == "predicted"


def test_without_table_and_estimate_the_commands_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoTableError, match=r"no latency table for hardware=rpi5 .*profile.kit=rpi5-kit.zip"):
        table_without_measuring(RPI5, KEYS, RUNTIME, tmp_path)


@pytest.mark.parametrize("runtime", [Runtime(threads=4), Runtime(precision="int8")])
def test_the_estimate_is_not_stretched_to_other_settings(runtime: Runtime) -> None:
    with pytest.raises(NoTableError, match="estimate for rpi4 is for fp32 and 1 thread"):
        estimated_table(RPI4, KEYS, runtime)


def test_who_measures() -> None:
    assert RPI4.target(RUNTIME, 0, print) is None
    assert isinstance(Hardware("host", measured_here=True).target(RUNTIME, 0, print), LocalTarget)
    shared = Hardware("rpi4", False, ("pi@a", "pi@b"), "~/nas/bin/python", tolerance=0.03)
    target = shared.target(RUNTIME, 0, print)
    assert isinstance(target, SshTarget)
    assert [(board.host, board.python) for board in target.boards] == [
        ("pi@a", "~/nas/bin/python"),
        ("pi@b", "~/nas/bin/python"),
    ]
    assert target.tolerance == 0.03


def test_more_threads_than_cores_are_refused_before_anything_is_measured() -> None:
    here = Hardware("host", measured_here=True, affinity=(0,))
    assert isinstance(here.target(Runtime(threads=1), 0, print), LocalTarget)
    with pytest.raises(InputError, match="threads=2, but this process may use 1 core:"):
        here.target(Runtime(threads=2), 0, print)


def test_quotas_of_a_container_count(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/sys/fs/cgroup/cpu.max": "150000 100000", "/sys/fs/cgroup/memory.max": str(300 * 2**20)}
    files["/proc/meminfo"] = "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n"
    files["/sys/fs/cgroup/memory.current"] = str(100 * 2**20)
    monkeypatch.setattr(conditions, "_read", lambda path: files.get(str(path)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert conditions.usable_cores() == 1
    assert conditions.describe()["memory_mb"] == 300
    assert conditions.snapshot()["free_memory_mb"] == 200
