"""Whatever a process leaves behind when it dies, the same command again brings a whole table."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nas.latency.plan import Plan, TableEffort, calibration_networks, make_plan
from nas.latency.provision import finish_interrupted, load_table, ready_table
from nas.latency.recovery import recovered
from nas.latency.sessions import NETWORKS, Bench, load_networks, profile
from nas.latency.table import LatencyTable, TableError
from nas.measuring.progress import ProfileProgress
from nas.measuring.rounds import MeasurementError
from nas.runtimes.runtime import Runtime
from nas.saving import HeldError, SaveError, hold, write_atomically
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.layers import LayerKey, layer_keys
from search_spaces.references import reference
from tests.cases import FakeTarget, small_space
from tools.dying import run_dying

RUNTIME = Runtime()
EFFORT = TableEffort(max_keys=40, networks=8)
ROUNDS = 4


def _command(
    folder: Path,
    target: FakeTarget | None = None,
    max_keys: int = 40,
    references: Sequence[Architecture] = (),
) -> LatencyTable:
    """What ``nas.search`` does before it searches."""
    # A device that holds little measures in several sessions.
    device = target or FakeTarget(noise=0.01, session_subjects=30)
    bench = Bench(device, RUNTIME, "fake", folder, ROUNDS)
    return ready_table(bench, small_space(), references, replace(EFFORT, max_keys=max_keys))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a command that nothing disturbed: to be read and copied only."""
    folder = tmp_path_factory.mktemp("undisturbed")
    _command(folder)
    return folder


def _check(folder: Path, whole: LatencyTable) -> None:
    """The folder holds what an undisturbed run leaves there, nothing twice and nothing more."""
    table = LatencyTable.load(folder)
    assert table.entries.keys() == whole.entries.keys()
    # After a session the plan is made anew: as many layers are measured, not always the same ones.
    counted = [Counter(each.source for each in found.entries.values()) for found in (table, whole)]
    assert counted[0] == counted[1]
    assert table.header.calibration is not None
    counts = Counter(each.architecture for each in load_networks(folder))
    assert set(counts.values()) == {1}
    assert set(counts) == set(calibration_networks(small_space(), EFFORT.networks, EFFORT.seed))
    # The lock of a process that died last of all holds nobody, and stays until the next one writes.
    names = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
    samples = [f"samples-{number}.jsonl" for number in range(1, len(table.header.sessions) + 1)]
    assert names == sorted([*samples, "networks.json", "table.csv", "table.json"])
    measured = [
        name
        for path in folder.glob("samples-*.jsonl")
        for name in json.loads(path.read_text().splitlines()[0])["names"]
    ]
    again = [name for name, count in Counter(measured).items() if count > 1 and name.startswith("network")]
    assert not again


@pytest.mark.slow
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.minute)])
def test_a_profile_that_dies_before_any_file_operation_ends_whole(
    tmp_path: Path, undisturbed: Path, step: int
) -> None:
    whole = LatencyTable.load(undisturbed)
    _check(undisturbed, whole)
    number = 0
    died = True
    while died:
        number += step
        folder = tmp_path / f"died-{number}"
        died = run_dying(lambda folder=folder: _command(folder), number, folder)
        _command(folder)
        _check(folder, whole)
        # What was measured and complete was not measured again.
        rounds = sum(len(path.read_text().splitlines()) - 1 for path in folder.glob("samples-*.jsonl"))
        assert rounds == ROUNDS * len(LatencyTable.load(folder).header.sessions)
    assert number > 20


def test_a_rerun_that_dies_as_well_ends_whole(tmp_path: Path, undisturbed: Path) -> None:
    whole = LatencyTable.load(undisturbed)
    for first, second in ((7, 3), (12, 5), (15, 9)):
        folder = tmp_path / f"{first}-{second}"
        assert run_dying(lambda folder=folder: _command(folder), first, folder)
        run_dying(lambda folder=folder: _command(folder), second, folder)
        _command(folder)
        _check(folder, whole)


@pytest.mark.parametrize("memory", [12, 2_000])
@pytest.mark.parametrize("step", [11, 14])
def test_a_profile_goes_on_with_its_rounds_whatever_memory_is_free_by_then(
    tmp_path: Path, step: int, memory: int
) -> None:
    """How much memory is free decides how many subjects take turns, not what was begun already."""
    folder = tmp_path / "died"
    assert run_dying(lambda: _command(folder), step, folder)
    begun = {path.name: path.read_text() for path in folder.glob("partial-*.jsonl")}
    assert begun
    _command(folder, FakeTarget(noise=0.01, session_subjects=memory))
    assert not [*folder.glob("partial-*")]
    kept = {path.name: path.read_text() for path in folder.glob("samples-*.jsonl")}
    for rounds in begun.values():
        assert sum(text.startswith(rounds) for text in kept.values()) == 1
    table = LatencyTable.load(folder)
    measured = sum(len(text.splitlines()) - 1 for text in kept.values())
    assert measured == ROUNDS * len(table.header.sessions)
    assert set(Counter(each.architecture for each in load_networks(folder)).values()) == {1}


def test_an_extended_table_is_calibrated_on_each_network_once(tmp_path: Path) -> None:
    """A network that counts twice vouches for itself when it is left out."""
    before = _command(tmp_path)
    target = FakeTarget(noise=0.01, session_subjects=30)
    after = _command(tmp_path, target, 80, [reference("mobilenet_v2", 96, 10)])
    assert target.asked
    assert len(after.header.sessions) > len(before.header.sessions)
    records = load_networks(tmp_path)
    assert set(Counter(each.architecture for each in records).values()) == {1}
    assert before.header.calibration is not None
    assert after.header.calibration is not None
    assert after.header.calibration.left_out.networks == len(records)
    # Files of older versions held them twice.
    rows = json.loads((tmp_path / NETWORKS).read_text())
    (tmp_path / NETWORKS).write_text(json.dumps(rows + rows))
    assert load_networks(tmp_path) == records


# -- half-saved by an older version, which wrote file after file ----------------------------------


@pytest.fixture
def saved(tmp_path: Path, undisturbed: Path) -> Path:
    return shutil.copytree(undisturbed, tmp_path / "saved")


def _cut_short(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def _older_table(folder: Path, name: str) -> None:
    """A file as it was before the last session."""
    lines = (folder / name).read_text().splitlines(keepends=True)
    (folder / name).write_text("".join(lines[: len(lines) // 2]))


@pytest.mark.parametrize("name", ["table.csv", "table.json"])
@pytest.mark.parametrize("harm", [_cut_short, _older_table, lambda folder, name: (folder / name).unlink()])
def test_a_table_that_was_half_saved_is_made_again_from_its_samples(saved: Path, name: str, harm) -> None:  # type: ignore[no-untyped-def]
    before = LatencyTable.load(saved)
    harm(saved, name)
    target = FakeTarget(noise=0.01, session_subjects=30)
    after = _command(saved, target)
    assert not target.asked
    assert after.entries == before.entries
    assert after.header.calibration == before.header.calibration
    assert len(after.header.sessions) == len(before.header.sessions)
    _check(saved, before)


def test_a_last_session_without_its_networks_is_completed(saved: Path) -> None:
    before = LatencyTable.load(saved)
    last = len(before.header.sessions)
    records = json.loads((saved / NETWORKS).read_text())
    names = json.loads((saved / f"samples-{last}.jsonl").read_text().splitlines()[0])["names"]
    kept = [
        each
        for each, record in zip(records, load_networks(saved), strict=True)
        if f"network_{record.architecture.id}" not in names
    ]
    assert len(kept) < len(records)
    (saved / NETWORKS).write_text(json.dumps(kept))
    (saved / f"samples-{last}.jsonl").rename(saved / "partial-0123456789.jsonl")
    before.with_entries({}, calibration=None).save(saved)
    target = FakeTarget(noise=0.01, session_subjects=30)
    after = _command(saved, target)
    assert not target.asked
    assert after.entries == before.entries
    assert after.header.calibration == before.header.calibration
    _check(saved, before)


def test_a_table_without_its_calibration_is_calibrated_by_the_next_command(saved: Path) -> None:
    before = LatencyTable.load(saved)
    before.with_entries({}, calibration=None).save(saved)
    said: list[str] = []
    table = load_table(saved, "fake", RUNTIME, say=said.append)
    assert table is not None
    assert table.header.calibration == before.header.calibration
    assert "lacked its calibration" in said[0]
    assert LatencyTable.load(saved).header.calibration == before.header.calibration


def test_an_interrupted_session_of_an_older_version_is_gone_on_with(tmp_path: Path) -> None:
    space = small_space()
    plan = make_plan(space, [], EFFORT)
    folder = tmp_path / "table"

    class Interrupted(FakeTarget):
        def measure(self, *arguments, **options):  # type: ignore[no-untyped-def]
            (folder / "pending.json").unlink()  # the older version had none
            super().measure(arguments[0], 2, *arguments[2:], **options)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(Bench(Interrupted(session_subjects=30), RUNTIME, "fake", folder, 4), plan)
    (partial,) = folder.glob("partial-*.jsonl")
    assert len(partial.read_text().splitlines()) == 3
    _command(folder)
    _check(folder, LatencyTable.load(folder))
    assert "partial" not in str(sorted(folder.iterdir()))


def test_rounds_of_another_device_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError):
        profile(Bench(_Broken(), RUNTIME, "fake", tmp_path, 4), Plan(_some_keys(), ()))
    table = _command(tmp_path, FakeTarget(device="another cpu", session_subjects=30))
    assert table.header.device == "another cpu"


class _Broken(FakeTarget):
    def measure(self, *arguments, **options):  # type: ignore[no-untyped-def]
        super().measure(arguments[0], 2, *arguments[2:], **options)
        raise MeasurementError("the board fell from the table")


def _died_over_the_front(folder: Path) -> list[LayerKey]:
    """Predicted layers whose measurement ended after its first round."""

    class Killed(FakeTarget):
        def measure(self, subjects, rounds, journal, *progress):  # type: ignore[no-untyped-def]
            super().measure(subjects, 1, journal, *progress)
            raise MeasurementError("killed")

    table = LatencyTable.load(folder)
    keys = [key for key, each in table.entries.items() if each.source == "predicted"][:3]
    with pytest.raises(MeasurementError, match="killed"):
        profile(Bench(Killed(noise=0.01), RUNTIME, "fake", folder, 4), Plan(tuple(keys), ()), table)
    assert (folder / "pending.json").exists()
    return keys


def _left_over(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir() if each.name.startswith(("pending", "partial"))]


def test_a_session_over_the_front_is_finished_though_the_front_is_another_by_then(saved: Path) -> None:
    keys = _died_over_the_front(saved)
    finish_interrupted(Bench(FakeTarget(noise=0.01), RUNTIME, "fake", saved, 4, ProfileProgress()))
    assert not _left_over(saved)
    assert {LatencyTable.load(saved).entries[key].source for key in keys} == {"measured"}


def test_a_session_that_others_measured_meanwhile_leaves_nothing(saved: Path) -> None:
    keys = _died_over_the_front(saved)
    pending = (saved / "pending.json").read_text()
    table = LatencyTable.load(saved)
    profile(Bench(FakeTarget(noise=0.01), RUNTIME, "fake", saved, 4), Plan((*keys, *_some_keys()), ()), table)
    (saved / "pending.json").write_text(pending)
    assert _left_over(saved)
    finish_interrupted(Bench(FakeTarget(noise=0.01), RUNTIME, "fake", saved, 4, ProfileProgress()))
    assert not _left_over(saved)


def _some_keys() -> tuple[LayerKey, ...]:
    return tuple(
        dict.fromkeys(key for each in calibration_networks(small_space(), 2, 0) for key in layer_keys(each))
    )


def test_a_table_that_nothing_brings_back_says_what_to_do(saved: Path) -> None:
    _cut_short(saved, "table.csv")
    for path in saved.glob("samples-*.jsonl"):
        path.unlink()
    with pytest.raises(TableError, match=r"table\.csv.*move the folder away and measure anew"):
        recovered(saved, "fake", RUNTIME)


def test_two_writers_of_one_table_do_not_mix(saved: Path) -> None:
    def second() -> None:
        table = LatencyTable.load(saved)
        keys = tuple(key for key, each in table.entries.items() if each.source == "predicted")[:5]
        profile(Bench(FakeTarget(), RUNTIME, "fake", saved, 4), Plan(keys, ()), table)

    def refused() -> None:
        with pytest.raises(HeldError, match=rf"is in use by process {os.getppid()} on .*: wait for it"):
            second()

    before = LatencyTable.load(saved)
    with hold(saved, "the latency table"):
        assert not run_dying(refused, 10_000, saved)
    assert LatencyTable.load(saved).entries == before.entries
    # A process that died holds nothing any longer.
    assert run_dying(second, 5, saved)
    second()
    assert len(LatencyTable.load(saved).header.sessions) == len(before.header.sessions) + 1


def test_a_folder_from_elsewhere_moves_nothing_out_of_itself(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    moves = {"table.csv": "../target"}
    (saved / ".commit.json").write_text(json.dumps({"moved": moves, "removed": []}))
    with pytest.raises(InputError, match="which is no file of this folder"):
        recovered(saved, "fake", RUNTIME)
    (saved / ".commit.json").write_text(json.dumps({"moved": {}, "removed": [str(target)]}))
    with pytest.raises(InputError, match="which is no file of this folder"):
        recovered(saved, "fake", RUNTIME)
    assert target.read_text() == "mine"
    # Nor does it keep us: what stands where a new file is written has no reader.
    (saved / ".commit.json").unlink()
    os.mkfifo(saved / ".card.json.tmp")
    with pytest.raises(SaveError, match=r"cannot write .*\.card\.json\.tmp"):
        write_atomically(saved / "card.json", "{}")
    (saved / ".lock").symlink_to(target)
    with pytest.raises(SaveError, match=r"cannot write .*\.lock: .*; move the link away"), hold(saved, "it"):
        pass
    assert target.read_text() == "mine"
