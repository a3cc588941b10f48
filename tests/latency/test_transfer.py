"""A study's latencies on a machine that did not measure them."""

import json
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from nas.devices.device import Measurement, Target
from nas.devices.ssh import Board
from nas.latency.end_to_end import level_links
from nas.latency.hardware import Hardware
from nas.latency.plan import TableEffort, make_plan
from nas.latency.provision import StaleTableError
from nas.latency.sessions import (
    Bench,
    NetworkRecord,
    load_networks,
    networks_text,
    profile,
    read_network_records,
)
from nas.latency.source import LatencySource, keys_of
from nas.latency.table import LatencyTable
from nas.measuring.progress import ProfileProgress
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import Subject
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from search_spaces.layers import layer_keys
from search_spaces.references import reference
from tests.cases import FakeTarget, layer_ms, network_ms, small_space

EFFORT = TableEffort(max_keys=30, networks=20)
ROUNDS = 8


class OtherMachine(FakeTarget):
    """Another processor of the same name: each layer and network has a speed of its own."""

    def measure(
        self,
        subjects: Sequence[Subject],
        rounds: int,
        journal: Path,
        progress: ProfileProgress = ProfileProgress(),
        precise: Sequence[Subject] = (),
    ) -> Measurement:
        measured = super().measure(subjects, rounds, journal, progress, precise)
        factors = np.exp(0.2 * np.random.default_rng(1).standard_normal(len(subjects)))
        return replace(measured, samples_ms=measured.samples_ms * factors)


@dataclass(frozen=True, slots=True)
class FakeHardware(Hardware):
    machine: FakeTarget | None = None

    def target(self, runtime: Runtime, seed: int, say: Callable[[str], None]) -> Target | None:
        return self.machine


def source(folder: Path, machine: FakeTarget) -> LatencySource:
    board = FakeHardware("fake", measured_here=True, machine=machine)
    bars = lambda: nullcontext(ProfileProgress())  # noqa: E731
    return LatencySource(board, Runtime(), folder, EFFORT, ROUNDS, bars, lambda line: None)


def test_a_board_is_asked_once_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(board: Board, command: str, stdin: bytes = b"") -> bytes:
        asked.append(board.host)
        found = {"cpu": "a core", "python": "3.11.2", "numpy": "2.4.1", "onnxruntime": "1.32.0"}
        return json.dumps(found | {"boot": board.host}).encode()

    monkeypatch.setattr(Board, "run", run)
    boards = Hardware("rpi4", measured_here=False, hosts=("pi@a", "pi@b"))
    bars = lambda: nullcontext(ProfileProgress())  # noqa: E731
    latencies = LatencySource(boards, Runtime(), tmp_path, EFFORT, ROUNDS, bars, print)
    for _ in range(3):  # the table, layers of the front, networks end to end
        assert latencies.target is not None
        assert latencies.target.identity() == ("a core", "1.32.0")
    assert sorted(asked) == ["pi@a", "pi@b"]


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatencyTable, list[NetworkRecord]]:
    """What the first machine gives a study: its table and networks, through their texts."""
    folder = tmp_path_factory.mktemp("first")
    plan = make_plan(small_space(), [], EFFORT)
    table = profile(Bench(FakeTarget(noise=0.01), Runtime(), "fake", folder, ROUNDS), plan)
    table = table.restricted(keys_of(small_space(), []))
    text = networks_text(level_links(load_networks(folder)))
    networks = read_network_records(Gate("the study", InputError), text)
    return LatencyTable.from_files(table.files(), "study"), networks


@pytest.mark.parametrize("own_table", [False, True])
def test_a_machine_of_the_same_kind_states_everything_at_the_level_of_the_study(
    carried: tuple[LatencyTable, list[NetworkRecord]], tmp_path: Path, own_table: bool
) -> None:
    table, networks = carried
    second = source(tmp_path, FakeTarget(noise=0.01, speed=0.8))
    if own_table:
        second.table(small_space(), [])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    joined = second.table(small_space(), [], table)
    assert joined.entries == table.entries
    found = second.agreement(joined, networks, tmp_path)
    assert found is not None
    assert found.slower == pytest.approx(1 / 0.8 - 1, abs=0.01)
    assert found.error < 0.01
    assert "slower" in str(found)
    network = small_space().sample(random.Random(3))
    assert {each.source for _, each in joined.layer_latencies(network)} == {"measured", "predicted"}
    better = second.measured(joined, [network])
    for key, each in better.layer_latencies(network):
        assert each.source == "measured"
        assert each.latency_ms == pytest.approx(layer_ms(key), rel=0.03)
    timed = second.timed(better, [network], tmp_path, networks)
    assert timed is not None
    assert timed.drift == pytest.approx(1 / 0.8 - 1, abs=0.02)
    assert timed.networks[0].record.p50_ms == pytest.approx(network_ms(network), rel=0.03)
    timed.journal.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_machine_of_another_kind_is_refused(
    carried: tuple[LatencyTable, list[NetworkRecord]], tmp_path: Path
) -> None:
    table, networks = carried
    second = source(tmp_path, OtherMachine(noise=0.01))
    with pytest.raises(StaleTableError, match=r"networks .* off on average.*hardware\.tolerance=0\.05"):
        second.agreement(second.table(small_space(), [], table), networks, tmp_path)
    with pytest.raises(StaleTableError, match="device fake cpu, not another"):
        source(tmp_path, FakeTarget(device="another")).table(small_space(), [], table)


def test_the_machine_that_gave_the_table_is_not_compared_with_itself(tmp_path: Path) -> None:
    target = FakeTarget(noise=0.01)
    first = source(tmp_path, target)
    table = LatencyTable.from_files(first.table(small_space(), []).files(), "study")
    asked = target.asked
    assert first.agreement(table, [], tmp_path) is None
    assert target.asked == asked
    # Layers measured later do not make it another one.
    first.measured(table, [small_space().sample(random.Random(3))])
    assert target.asked > asked
    assert len(LatencyTable.load(tmp_path).header.sessions) == 2
    assert not first.is_elsewhere(table)


def test_layers_that_the_study_lacks_are_taken_at_its_level(
    carried: tuple[LatencyTable, list[NetworkRecord]], tmp_path: Path
) -> None:
    table, _ = carried
    other = reference("mobilenet_v2", 96, 10)
    joined = source(tmp_path, FakeTarget(noise=0.01, speed=0.8)).table(small_space(), [other], table)
    assert {key: joined.entries[key] for key in table.entries} == table.entries
    lacking = set(layer_keys(other)) - set(table.entries)
    assert lacking
    ratios = [joined.entries[key].latency_ms / layer_ms(key) for key in lacking]
    assert np.median(ratios) == pytest.approx(1, abs=0.05)
