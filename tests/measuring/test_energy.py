"""Energy from a folder of the form that Linux has."""

from pathlib import Path

import pytest

from nas.measuring.energy import EnergyMeter
from nas.measuring.rounds import Journal, Runner, Schedule, measure, read_round


def counter(folder: Path, zone: str, name: str, energy_uj: int, largest_uj: int = 1_000_000) -> Path:
    made = folder / zone
    made.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", largest_uj)):
        (made / file).write_text(f"{value}\n")
    return made / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two packages, one of them with a core domain that is part of it, and a platform that holds both."""
    counter(tmp_path, "intel-rapl:0", "package-0", 500_000)
    counter(tmp_path, "intel-rapl:0:0", "core", 100_000)
    counter(tmp_path, "intel-rapl:1", "package-1", 0)
    counter(tmp_path, "intel-rapl:2", "psys", 900_000)
    return tmp_path


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network runs once between two readings."""
    whole = EnergyMeter.inference_mj
    monkeypatch.setattr(EnergyMeter, "inference_mj", lambda self, run: whole(self, run, 0.0))


def test_packages_are_added_up_and_nothing_is_counted_twice(powercap: Path) -> None:
    meter = EnergyMeter(powercap)
    for zone, energy_uj in (("0", 502_000), ("0:0", 999_000), ("1", 1_000), ("2", 990_000)):
        (powercap / f"intel-rapl:{zone}" / "energy_uj").write_text(str(energy_uj))
    assert meter.used_mj() == 3.0
    assert meter.used_mj() == 3.0
    assert meter.source == "RAPL, package-0, package-1"


def test_a_counter_that_wraps_goes_on(powercap: Path) -> None:
    meter = EnergyMeter(powercap)
    for energy_uj, used_mj in ((999_000, 499.0), (4_000, 504.0), (5_000, 505.0)):
        (powercap / "intel-rapl:0" / "energy_uj").write_text(str(energy_uj))
        assert meter.used_mj() == used_mj


def test_energy_is_that_of_one_inference(powercap: Path) -> None:
    path, runs = powercap / "intel-rapl:0" / "energy_uj", 0

    def run() -> None:
        nonlocal runs
        runs += 1
        path.write_text(str(500_000 + 2_500 * runs))

    assert EnergyMeter(powercap).inference_mj(run, shortest_s=0.001) == 2.5
    assert runs >= 1


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: None, "no counters of energy in"),
        (lambda folder: counter(folder, "intel-rapl:0", "psys", 1), "no counters of energy in"),
        (lambda folder: counter(folder, "intel-rapl:0", "package-0", 1).write_text("?"), "holds no number"),
        (lambda folder: counter(folder, "intel-rapl:0", "package-0", 1).unlink(), "cannot be read: No such"),
    ],
)
def test_where_it_cannot_be_read_the_reason_is_told(tmp_path: Path, spoil: object, reason: str) -> None:
    assert callable(spoil)
    spoil(tmp_path)
    meter = EnergyMeter(tmp_path, pytest.fail)
    assert meter.source.startswith("not read: ")
    assert reason in meter.source
    assert meter.inference_mj(pytest.fail) is None


def test_counters_for_root_alone_say_so(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    meter = EnergyMeter(powercap)
    assert meter.source == f"not read: {powercap}/intel-rapl:0/name may be read by root alone"


@pytest.mark.usefixtures("unsteady_machine", "at_once")
def test_a_counter_that_becomes_unreadable_ends_nothing(powercap: Path, tmp_path: Path) -> None:
    path, lines, loaded = powercap / "intel-rapl:1" / "energy_uj", list[str](), 0

    def load(name: str) -> Runner:
        nonlocal loaded
        loaded += 1
        if loaded > 2:  # the second loading
            path.unlink(missing_ok=True)
        return lambda: None

    meter = EnergyMeter(powercap, lines.append)
    journal = Journal(tmp_path / "rounds.jsonl", ["one", "two"], {})
    schedule = Schedule(8, loads=2, precise=["one", "two"])
    kept = measure(load, lambda: None, journal, schedule, meter=meter)
    first = {each.load: each for each in reversed(kept)}
    assert set(first[0].energy_mj) == {"one", "two"}
    assert all(not each.energy_mj for number, each in first.items() if number)
    reason = f"{path} cannot be read: No such file or directory"
    assert lines == [f"warning: energy is missing from here on: {reason}"]
    assert meter.source == f"not read to the end: {reason}"


@pytest.mark.usefixtures("unsteady_machine", "at_once")
def test_only_what_stands_for_itself_is_read_once_a_loading(powercap: Path, tmp_path: Path) -> None:
    path, used = powercap / "intel-rapl:1" / "energy_uj", 0

    def network() -> None:
        nonlocal used
        used += 700
        path.write_text(str(used % 1_000_000))

    meter = EnergyMeter(powercap)
    journal = Journal(tmp_path / "rounds.jsonl", ["network", "layer"], {})
    runners = {"network": network, "layer": lambda: None}
    schedule = Schedule(8, loads=2, precise=["network"])
    kept = measure(lambda name: runners[name], lambda: None, journal, schedule, meter=meter)
    first = {each.load: each for each in reversed(kept)}
    assert all(each.energy_mj == {"network": pytest.approx(0.7)} for each in first.values())
    assert sum(bool(each.energy_mj) for each in kept) == len(first) >= 2
    assert Journal(tmp_path / "rounds.jsonl", ["network", "layer"], {}).rounds == journal.rounds


@pytest.mark.parametrize("energy", [[1.0], {"a": -1.0}, {"a": float("nan")}, {"a": "1"}, {"a": 1, "b": 1}])
def test_energies_that_cannot_be_are_refused(energy: object) -> None:
    whole = {"samples_ms": [1.0], "anchor_ms": [1.0], "conditions": {}}
    assert read_round({**whole, "energy_mj": {"a": 1.5}}, 1).energy_mj == {"a": 1.5}
    with pytest.raises(ValueError, match="energy"):
        read_round({**whole, "energy_mj": energy}, 1)
