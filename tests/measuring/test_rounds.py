import errno
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from nas.measuring import rounds
from nas.measuring.rounds import Journal, MeasurementError, Round, Schedule, measure


def _steady_round(samples: int = 3, anchor_ms: float = 5.0) -> Round:
    return Round([1.0] * samples, [anchor_ms] * 3, {"load": 0.5})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A clock that only runners advance."""
    now = {"s": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: now["s"])
    return now


def _taking(clock: dict[str, float], milliseconds: "itertools.cycle[float]") -> rounds.Runner:
    def run() -> None:
        clock["s"] += next(milliseconds) / 1e3

    return run


def test_every_subject_runs_once_per_round_in_changing_order(tmp_path: Path, clock: dict[str, float]) -> None:
    order: list[str] = []
    runners = {name: (lambda name=name: order.append(name)) for name in "abcdef"}
    anchor = _taking(clock, itertools.cycle([5.0]))
    found = measure(runners.__getitem__, anchor, Journal(tmp_path / "j", list(runners), {}), Schedule(4, 3))
    warm_up, *rounds = (order[start : start + 6] for start in range(0, len(order), 6))
    assert warm_up == list("abcdef")
    assert all(sorted(each) == list("abcdef") for each in rounds)
    assert len({tuple(each) for each in rounds}) == 4 == len(found)


def test_samples_are_what_the_clock_says(tmp_path: Path, clock: dict[str, float]) -> None:
    runners = {"slow": _taking(clock, itertools.cycle([7.0])), "fast": _taking(clock, itertools.cycle([2.0]))}
    anchor = _taking(clock, itertools.cycle([5.0]))
    (found,) = measure(runners.__getitem__, anchor, Journal(tmp_path / "j", list(runners), {}), Schedule(1))
    assert found.samples_ms == pytest.approx([7.0, 2.0])
    assert found.anchor_ms == pytest.approx([5.0] * 3)


def test_everything_is_loaded_several_times_in_another_order(tmp_path: Path, clock: dict[str, float]) -> None:
    loaded: list[str] = []
    alive: set[str] = set()

    class Model:
        def __init__(self, name: str) -> None:
            assert name not in alive, "the loading before still takes its memory"
            self.name, self.number = name, loaded.count(name)
            loaded.append(name)
            alive.add(name)

        def __call__(self) -> None:
            clock["s"] += 1e-3 * (1 + self.number)

        def __del__(self) -> None:
            alive.discard(self.name)

    anchor = _taking(clock, itertools.cycle([5.0]))
    found = measure(Model, anchor, Journal(tmp_path / "j", list("abcdef"), {}), Schedule(12, loads=3))
    assert [each.load for each in found] == [0] * 4 + [1] * 4 + [2] * 4
    assert [each.samples_ms[0] for each in found] == pytest.approx([1.0] * 4 + [2.0] * 4 + [3.0] * 4)
    orders = {tuple(loaded[start : start + 6]) for start in (0, 6, 12)}
    assert len(orders) == 3
    assert all(sorted(each) == list("abcdef") for each in orders)


def test_a_loading_has_rounds_enough_to_be_told_from_noise(tmp_path: Path, clock: dict[str, float]) -> None:
    anchor = _taking(clock, itertools.cycle([5.0]))
    run = _taking(clock, itertools.cycle([1.0]))
    found = measure(lambda _: run, anchor, Journal(tmp_path / "j", ["a"], {}), Schedule(6, loads=5))
    assert [each.load for each in found] == [0] * 4 + [1] * 2


@pytest.mark.parametrize(("scatter", "rounds_measured"), [(0.0, 20), (0.05, 28), (0.2, 40)])
def test_loading_goes_on_until_networks_are_known(
    tmp_path: Path, clock: dict[str, float], scatter: float, rounds_measured: int
) -> None:
    # Every other loading is slower by the scatter. Of 5 %, six loadings leave 1.1 % of standard error, seven
    # 0.99 %; 20 % would need more loadings than are allowed.
    loaded: dict[str, int] = {}
    slower = {"network 1": 0, "network 2": 1}

    def load(name: str) -> rounds.Runner:
        loaded[name] = loaded.get(name, -1) + 1
        factor = 1 + scatter if loaded[name] % 2 == slower.get(name) else 1
        return _taking(clock, itertools.cycle([2.0 * factor]))

    names = [*(f"layer {number}" for number in range(9)), *slower]
    journal = Journal(tmp_path / "j", names, {})
    anchor = _taking(clock, itertools.cycle([5.0]))
    found = measure(load, anchor, journal, Schedule(20, precise=list(slower)))
    assert len(found) == rounds_measured
    assert len(measure(load, anchor, Journal(tmp_path / "k", names, {}), Schedule(20))) == 20


def test_rounds_in_which_the_anchor_moved_are_measured_again(tmp_path: Path, clock: dict[str, float]) -> None:
    # Warm-up, then three anchor runs a round: the second round is disturbed.
    anchors = itertools.cycle([5.0, *[5.0] * 3, *[9.0] * 3, *[5.1] * 9])
    journal = Journal(tmp_path / "j", ["a"], {})
    run = _taking(clock, itertools.cycle([1.0]))
    found = measure(lambda _: run, _taking(clock, anchors), journal, Schedule(4))
    assert len(found) == 4
    assert len(journal.rounds) == 5
    assert all(each.anchor_ms[0] < 6 for each in found)


def test_a_machine_that_never_holds_still_is_refused(tmp_path: Path, clock: dict[str, float]) -> None:
    anchors = itertools.cycle([2.0, *(ms for ms in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0) for _ in range(3))])
    journal = Journal(tmp_path / "j", ["a"], {})
    with pytest.raises(MeasurementError, match="did not hold still"):
        measure(lambda _: lambda: None, _taking(clock, anchors), journal, Schedule(6))


def test_a_measurement_continues_where_it_was_interrupted(tmp_path: Path, clock: dict[str, float]) -> None:
    path = tmp_path / "journal.jsonl"
    anchor = _taking(clock, itertools.cycle([5.0]))
    run = _taking(clock, itertools.cycle([1.0]))
    calls = itertools.count()

    def interrupted() -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        run()

    with pytest.raises(KeyboardInterrupt):
        measure(lambda _: interrupted, anchor, Journal(path, ["a"], {"cpu": "x"}), Schedule(5))
    resumed = Journal(path, ["a"], {"cpu": "x"})
    assert len(resumed.rounds) == 2
    found = measure(lambda _: run, anchor, resumed, Schedule(5))
    assert [each.load for each in found] == [0, 0, 1, 1, 1]  # another process has models of its own
    assert len(Journal(path, ["a"], {"cpu": "x"}).rounds) == 5


def test_a_torn_last_line_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, ["a", "b", "c"], {})
    journal.append(_steady_round())
    journal.append(_steady_round())
    whole = path.read_bytes()
    for cut in (1, 20, 60):
        path.write_bytes(whole[:-cut])
        again = Journal(path, ["a", "b", "c"], {})
        assert len(again.rounds) == 1
        again.append(_steady_round())
        assert len(Journal(path, ["a", "b", "c"], {}).rounds) == 2


def test_a_journal_of_other_subjects_or_conditions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, ["a", "b", "c"], {"threads": 1}).append(_steady_round())
    with pytest.raises(MeasurementError, match="its names differs"):
        Journal(path, ["a", "b"], {"threads": 1})
    with pytest.raises(MeasurementError, match="its identity differs"):
        Journal(path, ["a", "b", "c"], {"threads": 2})
    path.write_text("no json\n")
    with pytest.raises(MeasurementError, match="is damaged"):
        Journal(path, ["a", "b", "c"], {"threads": 1})


def test_a_round_of_another_length_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, ["a", "b", "c"], {}).append(_steady_round())
    with path.open("a") as file:
        file.write(json.dumps(_steady_round(samples=2).__dict__) + "\n")
    with pytest.raises(MeasurementError, match="is damaged"):
        Journal(path, ["a", "b", "c"], {})


def test_the_slowest_third_of_the_rounds_does_not_count() -> None:
    samples = np.array([[9.0, 90.0], [1.0, 10.0], [2.0, 20.0]])
    assert rounds.fastest_two_thirds(samples) == pytest.approx([1.5, 15.0])


def test_drift_that_neighbours_share_is_taken_out() -> None:
    generator = np.random.default_rng(0)
    exact = generator.uniform(0.05, 10, 300)
    orders = [rounds.round_order(seed, 300) for seed in range(30)]
    samples = np.empty((30, 300))
    for index, order in enumerate(orders):
        # The clock falls by a third for a part of every round, at another time in each.
        speed = np.ones(300)
        start = int(generator.integers(0, 150))
        speed[start : start + 150] = 1.5
        samples[index, order] = exact[order] * speed * np.exp(0.01 * generator.standard_normal(300))
    found = np.median(rounds.without_drift(samples, orders), axis=0) / exact
    plain = np.median(samples, axis=0) / exact
    assert np.std(found / np.median(found)) < 0.01
    assert np.std(plain / np.median(plain)) > 0.1


def test_no_drift_is_invented() -> None:
    exact = np.linspace(1, 2, 100)
    orders = [rounds.round_order(seed, 100) for seed in range(10)]
    assert rounds.without_drift(np.tile(exact, (10, 1)), orders) == pytest.approx(np.tile(exact, (10, 1)))


def _line(**changes: object) -> str:
    return json.dumps({**_steady_round().__dict__, **changes}) + "\n"


@pytest.mark.parametrize(
    "line",
    [
        "1\n",
        "[]\n",
        "[" * 100_000 + "\n",
        "\xff\n",
        _line(samples_ms=[1.0, 0, 1.0]),
        _line(samples_ms=[1.0, -1, 1.0]),
        _line(samples_ms=[1.0, float("nan"), 1.0]),
        _line(samples_ms=[1.0, float("inf"), 1.0]),
        _line(samples_ms=[1.0, "2", 1.0]),
        _line(samples_ms=[1.0, [2.0], 1.0]),
        _line(samples_ms=[1.0, True, 1.0]),
        _line(samples_ms={"a": 1}),
        _line(anchor_ms=[]),
        _line(anchor_ms=[None]),
        _line(anchor_ms=5.0),
        _line(conditions=[1]),
        _line(conditions={"load": {"a": 1}}),
        _line(conditions={"throttled": True}),
        _line(conditions={"throttled": [1]}),
        _line(shuffle="x"),
        _line(shuffle=2**64),
        _line(other=1),
    ],
)
def test_a_round_of_anything_but_latencies_is_damage(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, ["a", "b", "c"], {}).append(_steady_round())
    with path.open("a", encoding="latin-1") as file:
        file.write(line)
    with pytest.raises(rounds.JournalError, match=r"is damaged.*delete it to measure anew"):
        Journal(path, ["a", "b", "c"], {})


def test_a_full_disk_is_said_and_leaves_the_rounds_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, ["a", "b", "c"], {})
    journal.append(_steady_round())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MeasurementError, match="No space left on device; make room there, then type"):
            journal.append(_steady_round())
    assert path.read_bytes() == before
    Journal(path, ["a", "b", "c"], {}).append(_steady_round())
    assert len(Journal(path, ["a", "b", "c"], {}).rounds) == 2


def test_rounds_are_not_written_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "partial.jsonl"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MeasurementError, match=r"cannot write .*partial\.jsonl"):
        Journal(link, ["a"], {}).append(_steady_round(1))
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "elsewhere").write_text('{"mine": 1}\n{"no line')
    os.mkfifo(tmp_path / "pipe")
    for path in (link, tmp_path / "pipe"):
        with pytest.raises(MeasurementError, match="is no ordinary file; delete it to measure anew"):
            Journal(path, ["a"], {})
    assert (tmp_path / "elsewhere").read_text() == '{"mine": 1}\n{"no line'
