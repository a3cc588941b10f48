import json
import os
import re
import stat
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime
import pytest

from nas.devices.device import LocalTarget
from nas.devices.kit import (
    KitSettings,
    ResultError,
    groups_of,
    read_result,
    write_kit,
)
from nas.measuring import board, conditions
from nas.measuring.board import BoardError, Watch, decode_throttled, read_throttled
from nas.measuring.rounds import MeasurementError
from nas.runtimes.runtime import Runtime, installed
from nas.runtimes.subject import RuntimeUnavailableError, Subject, graph
from search_spaces.layers import LayerKey, layer_keys
from search_spaces.references import reference

pytestmark = pytest.mark.usefixtures("unsteady_machine")

NETWORK = reference("mobilenet_v3_small", 64, 10)
SUBJECTS: list[Subject] = [*dict.fromkeys(layer_keys(NETWORK)[:8]), NETWORK]
RUNTIME = Runtime()


def _write(path: Path, rounds: int = 4, groups: int = 1) -> Path:
    share = -(-len(SUBJECTS) // groups)
    # Half of a group are layers that tie it to the others, where there are several.
    size = share if groups == 1 else 2 * share - 1
    write_kit(path, KitSettings("rpi4", RUNTIME, rounds), groups_of(SUBJECTS, size))
    return path


def _run(kit: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(kit), "--folder", str(kit.parent), *options],
        capture_output=True,
        text=True,
        cwd=kit.parent,
        env=os.environ | environment,
        check=False,
    )


def _result(kit: Path) -> Path:
    return kit.with_name(f"{kit.stem}-result.jsonl")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, unsteady_machine: None) -> Path:
    """A kit of three groups that has been run."""
    kit = _write(tmp_path_factory.mktemp("kit") / "rpi4-kit.zip", groups=3)
    done = _run(kit)
    assert done.returncode == 0, done.stderr
    assert "group 3/3: 4 of 4 rounds" in done.stdout
    return kit


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_large_weights_are_left_out_of_a_kit(precision: str) -> None:
    key = next(key for key in layer_keys(NETWORK) if getattr(key.part, "se", False))
    whole = graph(key, precision)  # type: ignore[arg-type]
    model = Runtime(precision=precision).model(key)  # type: ignore[arg-type]
    assert len(model.weights) == 4  # depthwise, SE's two, projection
    assert len(model.skeleton) <= whole.ByteSize() - sum(each.nbytes for each in model.weights.values())


def test_a_kit_runs_with_nothing_of_this_project_installed(measured: Path) -> None:
    result = read_result(_result(measured), "rpi4", RUNTIME)
    assert result.problems == ()
    measurements = [group.measurement for group in result.groups]
    found = {subject for each in measurements for subject in each.subjects}
    assert found == set(SUBJECTS)
    for group in measurements:
        assert group.samples_ms.shape == (4, len(group.subjects))
        assert (group.samples_ms > 0).all()
        assert group.record["runtime_version"] == onnxruntime.__version__
        assert group.record["discarded_rounds"] == 0
    assert result.device == conditions.cpu_model()


def test_a_kit_takes_a_kilobyte_or_two_a_layer(measured: Path) -> None:
    weights = sum(graph(subject).ByteSize() for subject in SUBJECTS)
    with zipfile.ZipFile(measured) as kit:
        graphs = [each.compress_size for each in kit.infolist() if each.filename.startswith("graphs/")]
    *layers, _, _ = sorted(graphs)  # the networks are the largest
    assert sum(layers) < 1024 * len(layers)
    assert sum(graphs) < weights / 10
    assert measured.stat().st_size < sum(graphs) + 32_768  # the programs themselves


def test_the_same_command_again_measures_nothing_again(measured: Path) -> None:
    before = _result(measured).read_text().splitlines()
    done = _run(measured)
    assert done.stdout.count("measured before") == 3
    assert _result(measured).read_text().splitlines()[1:-1] == before[1:-1]


def test_the_runner_goes_on_after_a_power_cut(tmp_path: Path) -> None:
    kit = _write(tmp_path / "kit.zip", rounds=25)
    with subprocess.Popen(
        [sys.executable, str(kit)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        next(line for line in process.stdout if " 3 of 25 rounds" in line)
        process.kill()
    journal = tmp_path / "kit-rounds" / "group-0000.jsonl"
    kept = journal.read_bytes()[: journal.read_bytes().rfind(b"\n") + 1]
    journal.write_bytes(kept + b'{"samples_ms": [0.1, ')  # torn in the middle of a round
    done = _run(kit)
    assert done.returncode == 0, done.stderr
    assert f"going on after {kept.count(b'samples_ms')} rounds" in done.stdout
    assert journal.read_bytes().startswith(kept)
    assert read_result(_result(kit), "rpi4", RUNTIME).problems == ()


def test_a_result_cut_short_gives_its_whole_groups_and_says_what_is_missing(
    measured: Path, tmp_path: Path
) -> None:
    lines = _result(measured).read_text().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_text("".join(lines[: len(lines) // 2]))
    result = read_result(tmp_path / "cut.jsonl", "rpi4", RUNTIME)
    assert len(result.groups) == 1
    assert result.problems == (
        "group 2: 1 usable rounds of 4 wanted (0 of 1 were throttled)",
        "1 of 3 groups are missing",
    )
    (tmp_path / "cut.jsonl").write_text(lines[0])
    with pytest.raises(ResultError, match=r"nothing in .*cut.jsonl can be used: 3 of 3 groups are missing"):
        read_result(tmp_path / "cut.jsonl", "rpi4", RUNTIME)


@pytest.mark.parametrize(
    ("hardware", "runtime", "message"),
    [
        ("rpi5", RUNTIME, "another kit: it is for hardware=rpi4"),
        ("rpi4", Runtime(threads=4), "1 thread, not for hardware=rpi4, onnxruntime, fp32, 4 threads"),
        ("rpi4", Runtime(precision="int8"), "fp32, 1 thread, not for hardware=rpi4, onnxruntime, int8"),
    ],
)
def test_a_result_of_another_kit_is_refused(
    measured: Path, hardware: str, runtime: Runtime, message: str
) -> None:
    with pytest.raises(ResultError, match=message):
        read_result(_result(measured), hardware, runtime)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: ["not JSON\n"], "no result file"),
        (lambda lines: [], "no result file"),
        (lambda lines: [lines[0].replace('"result": 1', '"result": 9'), *lines[1:]], "schema 9"),
        (lambda lines: [lines[0], lines[1].replace('"kit": "', '"kit": "f'), *lines[2:]], "mixes kits"),
        (
            lambda lines: [lines[0], lines[1].replace("k3", "k4"), *lines[2:]],
            r"damaged: .*k4_hswish' names no layer: stem: kernel must be",
        ),
        (lambda lines: [lines[0], *lines[2:]], "is damaged: "),
        (
            lambda lines: [*lines[:2], lines[2].replace("[", "[1.0, ", 1), *lines[3:]],
            "damaged: .* a round has not one sample for each of 3 subjects",
        ),
    ],
)
def test_a_damaged_result_is_refused_in_one_line(
    measured: Path, tmp_path: Path, damage: Callable[[list[str]], list[str]], message: str
) -> None:
    path = tmp_path / "damaged.jsonl"
    path.write_text("".join(damage(_result(measured).read_text().splitlines(keepends=True))))
    with pytest.raises(ResultError, match=message) as caught:
        read_result(path, "rpi4", RUNTIME)
    assert "\n" not in str(caught.value)


def test_a_kit_for_another_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="runtime=torch cannot be sent"):
        write_kit(tmp_path / "kit.zip", KitSettings("rpi4", Runtime("torch"), 4), [SUBJECTS])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("litert" not in installed(), reason="litert is not installed")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_litert_kit_is_measured_with_litert(tmp_path: Path, precision: str) -> None:
    runtime = Runtime("litert", precision)  # type: ignore[arg-type]
    kit = tmp_path / "kit.zip"
    write_kit(kit, KitSettings("rpi4", runtime, 4), [SUBJECTS])
    assert kit.stat().st_size < sum(graph(subject).ByteSize() for subject in SUBJECTS) / 4
    done = _run(kit)
    assert done.returncode == 0, done.stderr
    assert f"litert {runtime.version()}" in done.stdout
    result = read_result(_result(kit), "rpi4", runtime)
    assert result.problems == ()
    assert (result.groups[0].measurement.samples_ms > 0).all()
    assert result.runtime_version == runtime.version()
    with pytest.raises(ResultError, match=f"it is for hardware=rpi4, litert, {precision}, 1 thread, not for"):
        read_result(_result(kit), "rpi4", Runtime())


def test_a_kit_is_measured_on_the_cores_it_names(tmp_path: Path) -> None:
    kit = tmp_path / "kit.zip"
    core = max(os.sched_getaffinity(0))
    write_kit(kit, KitSettings("rpi4", RUNTIME, 4, affinity=(core,)), [SUBJECTS[:2]])
    done = _run(kit)
    assert done.returncode == 0, done.stderr
    result = read_result(_result(kit), "rpi4", RUNTIME)
    assert result.header.board["affinity"] == [core]
    write_kit(kit, KitSettings("rpi4", RUNTIME, 4, affinity=(4096,)), [SUBJECTS[:2]])
    done = _run(kit)
    assert done.returncode == 1
    assert "hardware.affinity=[4096]: this machine lets the process use cores" in done.stderr
    assert done.stderr.count("\n") == 1


def test_cores_are_given_back_after_measuring_here(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    # As ncnn, ExecuTorch and PyTorch keep theirs.
    kept, over = list[int](), threading.Event()
    old = threading.Thread(target=lambda: (kept.append(threading.get_native_id()), over.wait()))
    old.start()
    with conditions.affine_to((core,)):
        assert os.sched_getaffinity(0) == os.sched_getaffinity(kept[0]) == {core}
    assert os.sched_getaffinity(kept[0]) == before
    over.set()
    measured = LocalTarget(RUNTIME, 0, (core,)).measure(SUBJECTS[:2], 4, tmp_path / "journal.jsonl")
    assert measured.record["affinity"] == [core]
    assert os.sched_getaffinity(0) == before
    with pytest.raises(MeasurementError, match=r"hardware\.affinity=\[4096\]"):
        LocalTarget(RUNTIME, 0, (4096,)).measure(SUBJECTS[:2], 4, tmp_path / "other.jsonl")


@pytest.mark.skipif("litert" not in installed(), reason="litert is not installed")
def test_a_measurement_says_which_layers_are_not_accelerated(tmp_path: Path) -> None:
    fast, slow = (
        LayerKey.parse(f"ir_14_i16_x48_o24_k3_s2_se_{activation}") for activation in ("relu", "hswish")
    )
    measured = LocalTarget(Runtime("litert", "int8")).measure([fast, slow], 4, tmp_path / "journal.jsonl")
    assert measured.record["undelegated"] == {str(slow): ["HARD_SWISH", "HARD_SWISH"]}


def test_without_onnxruntime_the_runner_names_the_pip_line(tmp_path: Path) -> None:
    kit = _write(tmp_path / "kit.zip")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    program = [bare / "bin" / "python", kit]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "-m pip install numpy onnxruntime" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def vcgencmd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a ``vcgencmd`` that answers with the bits given, one after the other, then the last."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def install(*bits: int) -> None:
        answers = folder / "answers"
        answers.write_text("".join(f"throttled={value:#x}\n" for value in bits))
        script = folder / "vcgencmd"
        script.write_text(
            "#!/bin/sh\n"
            f"head -n 1 {answers}\n"
            f'[ "$(wc -l < {answers})" -gt 1 ] && sed -i 1d {answers}\n'
            "exit 0\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    return install


def test_throttled_bits_are_decoded_as_documented(vcgencmd: Callable[..., None]) -> None:
    vcgencmd(0x50005)
    bits = read_throttled()
    assert bits == 0x50005
    assert decode_throttled(bits) == {
        "now": ["under-voltage", "throttled"],
        "since_boot": ["under-voltage", "throttled"],
    }
    assert decode_throttled(0xA000A) == {
        "now": ["frequency capped", "soft temperature limit"],
        "since_boot": ["frequency capped", "soft temperature limit"],
    }


@pytest.mark.parametrize(
    ("bits", "throttled"),
    [
        ((0x0, 0x0), []),
        ((0x50000, 0x50000), []),  # long ago
        ((0x0, 0x40000), ["throttled"]),  # for a moment within the round
        ((0x4, 0x40000), ["throttled"]),  # when it began
        ((0x0, 0x80008), ["soft temperature limit"]),
    ],
)
def test_a_round_is_throttled_if_anything_was_while_it_ran(
    vcgencmd: Callable[..., None], bits: tuple[int, ...], throttled: list[str]
) -> None:
    vcgencmd(*bits)
    assert Watch(75, print).snapshot()["throttled"] == throttled


def test_throttled_rounds_do_not_count(tmp_path: Path, vcgencmd: Callable[..., None]) -> None:
    vcgencmd(0, 0, 0, 0x40004, 0, 0x40000, 0x40000, 0x40000, 0x40000, 0x40000)
    kit = _write(tmp_path / "kit.zip")
    done = _run(kit)
    assert done.returncode == 0, done.stderr
    group = read_result(_result(kit), "rpi4", RUNTIME).groups[0].measurement
    throttled = group.record["throttled_rounds"]
    assert isinstance(throttled, int)
    assert group.record["discarded_rounds"] == throttled > 0
    assert len(group.samples_ms) == 4


def test_throttled_rounds_only_are_one_clear_line_on_board_and_import(
    tmp_path: Path, vcgencmd: Callable[..., None]
) -> None:
    vcgencmd(0x50005)
    kit = _write(tmp_path / "kit.zip")
    done = _run(kit)
    assert done.returncode == 1
    assert "8 of 8 rounds were throttled (throttled, under-voltage)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout.count("warning: under-voltage") == 1
    with pytest.raises(ResultError, match=r"8 of 8 were throttled"):
        read_result(_result(kit), "rpi4", RUNTIME)
    vcgencmd(0x50000)  # a better power supply: the same command goes on
    done = _run(kit)
    assert done.returncode == 0, done.stderr
    assert "going on after 8 rounds" in done.stdout
    assert read_result(_result(kit), "rpi4", RUNTIME).groups[0].measurement.record["throttled_rounds"] == 8


@pytest.fixture
def temperatures(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(*values: float) -> None:
        left: Iterator[float] = iter(values)
        monkeypatch.setattr(conditions, "snapshot", lambda: {"temperature_c": next(left)})

    return install


def test_measuring_pauses_above_the_temperature_limit(
    temperatures: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "read_throttled", lambda: 0)
    temperatures(76, 74, 72, 70)
    lines: list[str] = []
    pauses: list[float] = []
    Watch(75, lines.append, pauses.append).snapshot()
    assert lines == ["76 °C: pausing until 70 °C"]
    assert len(pauses) == 3
    temperatures(75)
    Watch(75, lines.append, pauses.append).snapshot()
    assert len(pauses) == 3


def test_a_board_that_stays_hot_is_given_up(temperatures: Callable[..., None]) -> None:
    temperatures(*[90.0] * 1000)
    with pytest.raises(BoardError, match="did not cool below 70 °C in 30 minutes"):
        Watch(75, lambda line: None, lambda seconds: None).snapshot()


def test_a_full_disk_is_one_line_and_keeps_what_was_measured(tmp_path: Path) -> None:
    kit = _write(tmp_path / "kit.zip", rounds=20)
    # A limit on the size of files stands in for a full disk: writing past it fails as such.
    limited = "import resource, signal, sys, runpy; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); sys.argv = sys.argv[1:]; "
    limited += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", limited, str(kit)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.fullmatch(
        r"cannot write \S+: File too large; name a place on another .+, then type the same .+\n", done.stderr
    )
    kept = (tmp_path / "kit-rounds" / "group-0000.jsonl").read_bytes().count(b"\n") - 1
    assert kept >= 1
    again = _run(kit)
    assert again.returncode == 0, again.stderr
    assert f"going on after {kept} rounds" in again.stdout


def test_manifest_names_every_subject_and_the_anchor(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(_write(tmp_path / "kit.zip")) as kit:
        manifest = json.loads(kit.read(board.MANIFEST))
        assert set(manifest["groups"][0]) | {manifest["anchor"]} == set(manifest["subjects"])
        assert all(kit.read(each["graph"]) for each in manifest["subjects"].values())


def test_groups_deal_out_layers_and_networks() -> None:
    groups = groups_of(SUBJECTS, 5)
    assert len(groups) > 1
    assert max(map(len, groups)) <= 5
    counts = Counter(subject for group in groups for subject in group)
    assert set(counts) == set(SUBJECTS)
    links = {subject for subject, count in counts.items() if count > 1}
    assert links
    assert all(isinstance(subject, LayerKey) and counts[subject] == len(groups) for subject in links)
    assert groups_of(SUBJECTS, len(SUBJECTS)) == [SUBJECTS]
