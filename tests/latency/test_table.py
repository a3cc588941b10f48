import json
from pathlib import Path

import numpy as np
import pytest

from nas.latency.calibration import Calibration
from nas.latency.plan import TableEffort, make_plan
from nas.latency.provision import StaleTableError, load_table, profile_command, table_folder
from nas.latency.sessions import Bench, calibrate, features_of, profile
from nas.latency.table import Entry, LatencyTable, MissingKeysError, TableError, TableHeader
from nas.runtimes.runtime import Runtime
from search_spaces.layers import LayerKey, layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from tests.cases import FakeTarget, layer_ms

HEADER = TableHeader(
    hardware="board",
    device="Cortex-A72",
    runtime="onnxruntime",
    runtime_version="1.20.0",
    precision="fp32",
    threads=1,
    created="2026-01-02T03:04:05+00:00",
)


def _table(*names: str, source: str = "measured") -> LatencyTable:
    entries = {
        key: Entry(layer_ms(key), 0.001, 20, source)  # type: ignore[arg-type]
        for name in names
        for key in layer_keys(reference(name))
    }
    return LatencyTable(HEADER, entries)


def test_a_network_is_the_sum_of_its_layers() -> None:
    table = _table("mobilenet_v2")
    expected = sum(layer_ms(key) for key in layer_keys(reference("mobilenet_v2")))
    found = table.latency(reference("mobilenet_v2"))
    assert found.latency_ms == pytest.approx(expected)
    assert found.source == "table"


def test_a_network_is_as_good_as_its_worst_layer() -> None:
    table = _table("mobilenet_v2")
    key = layer_keys(reference("mobilenet_v2"))[5]
    predicted = table.with_entries({key: Entry(1.0, 0.1, 0, "predicted")})
    assert predicted.latency(reference("mobilenet_v2")).source == "predicted"
    estimated = predicted.with_entries(
        {layer_keys(reference("mobilenet_v2"))[0]: Entry(1.0, 0.1, 0, "estimated")}
    )
    assert estimated.latency(reference("mobilenet_v2")).source == "estimated"


def test_a_missing_layer_names_the_command_that_measures_it() -> None:
    with pytest.raises(MissingKeysError, match=r"lacks \d+ layer.*python -m nas\.profile hardware=board"):
        _table("mobilenet_v2").latency(reference("mobilenet_v3_small"))


def test_files_round_trip(tmp_path: Path, mobilenet_space: SearchSpace) -> None:
    plan = make_plan(mobilenet_space.restricted([96]), [], TableEffort(60, 12))
    table = profile(Bench(FakeTarget(), Runtime(), "fake", tmp_path, 4), plan)
    again = LatencyTable.load(tmp_path)
    assert again.header == table.header
    assert set(again.entries) == set(table.entries)
    network = plan.networks[0]
    assert again.latency(network).latency_ms == pytest.approx(table.latency(network).latency_ms, rel=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",20,measured\n", ",20,guessed\n", "line 2: source 'guessed' is not one of"),
        (",0.001,20", ",-1,20", "line 2: .* is no latency"),
        ("key,latency_ms", "layer,latency_ms", "the first line must be key,latency_ms"),
        ("ir_112", "xx_112", "names no layer"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    _table("mobilenet_v2").save(tmp_path)
    path = tmp_path / "table.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(TableError, match=message):
        LatencyTable.load(tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf", "-0.5", "0", "fast"])
def test_impossible_latencies_are_refused(tmp_path: Path, value: str) -> None:
    _table("mobilenet_v2").save(tmp_path)
    path = tmp_path / "table.csv"
    first, second, *rest = path.read_text().splitlines(keepends=True)
    key, _, *others = second.split(",")
    path.write_text("".join([first, ",".join([key, value, *others]), *rest]))
    with pytest.raises(TableError, match=r"table\.csv, line 2"):
        LatencyTable.load(tmp_path)


def test_duplicated_keys_truncated_and_edited_files_are_refused(tmp_path: Path) -> None:
    _table("mobilenet_v2").save(tmp_path)
    path = tmp_path / "table.csv"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    path.write_text(text + lines[-1])
    with pytest.raises(TableError, match="is listed twice"):
        LatencyTable.load(tmp_path)
    path.write_text("".join(lines[:-3]))
    with pytest.raises(TableError, match="was cut short"):
        LatencyTable.load(tmp_path)
    path.write_text(text[:-10])
    with pytest.raises(TableError, match="cut short"):
        LatencyTable.load(tmp_path)
    path.write_text(text.replace("0.001,20", "0.002,20", 1))
    with pytest.raises(TableError, match="was edited by hand"):
        LatencyTable.load(tmp_path)


def test_headers_of_newer_versions_and_other_files_are_refused(tmp_path: Path) -> None:
    _table("mobilenet_v2").save(tmp_path)
    path = tmp_path / "table.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, "schema_version": 99}))
    with pytest.raises(TableError, match="schema version 99, this program reads up to 1"):
        LatencyTable.load(tmp_path)
    path.write_text(json.dumps({**header, "statistic": "median"}))
    with pytest.raises(TableError, match=r"is of median over the rounds, .*: move it away and measure anew"):
        LatencyTable.load(tmp_path)
    path.write_text(json.dumps({"hello": 1}))
    with pytest.raises(TableError, match="it is no latency table"):
        LatencyTable.load(tmp_path)
    path.write_text("{")
    with pytest.raises(TableError, match="is no JSON"):
        LatencyTable.load(tmp_path)
    path.unlink()
    with pytest.raises(TableError, match="cannot read"):
        LatencyTable.load(tmp_path)


def test_staleness_is_noticed_and_everything_that_differs_named(tmp_path: Path) -> None:
    runtime = Runtime(threads=1)
    folder = table_folder(tmp_path, "board", runtime)
    assert load_table(folder, "board", runtime) is None
    _table("mobilenet_v2").save(folder)
    assert load_table(folder, "board", runtime, "Cortex-A72", "1.20.0") is not None
    with pytest.raises(StaleTableError, match=r"onnxruntime version 1\.20\.0, not 1\.99"):
        load_table(folder, "board", runtime, "Cortex-A72", "1.99")
    with pytest.raises(StaleTableError, match=r"device Cortex-A72, not Cortex-A76; .*nas\.profile"):
        load_table(folder, "board", runtime, "Cortex-A76", "1.20.0")
    with pytest.raises(StaleTableError, match="threads 1, not 4; precision fp32, not int8"):
        load_table(folder, "board", Runtime(precision="int8", threads=4))


def test_the_profile_command_repeats_what_is_not_default() -> None:
    runtime = Runtime("onnxruntime", "int8", 4)
    assert profile_command("rpi4", runtime) == (
        "python -m nas.profile hardware=rpi4 runtime.precision=int8 hardware.threads=4"
    )


def test_the_digest_follows_what_decides_latencies() -> None:
    table = _table("mobilenet_v2")
    keys = layer_keys(reference("mobilenet_v2"))
    changed = table.with_entries({keys[3]: Entry(9.0, 0.1, 20, "measured")})
    assert table.digest(keys) != changed.digest(keys)
    assert table.digest(keys[:3]) == changed.digest(keys[:3])
    other = LayerKey.parse("stem_32_o16_k3_relu")
    assert table.digest(keys) == table.with_entries({other: Entry(1, 0, 1, "measured")}).digest(keys)


def test_a_table_with_too_few_networks_stays_uncalibrated() -> None:
    table = _table("mobilenet_v2")
    assert calibrate(table, []).header.calibration is None
    features = features_of(table, [reference("mobilenet_v2")] * 3)
    with pytest.raises(ValueError, match="at least 4 networks"):
        Calibration.fit(features, features[:, 0])


def test_a_correction_of_noise_makes_no_network_faster_than_nothing() -> None:
    """Few networks timed on a busy machine can be fitted by a line that leaves small ones less than 0 ms."""
    network = reference("mobilenet_v2")
    table = _table("mobilenet_v2")
    sums_ms = np.array([4.0, 8.0, 12.0, 16.0])
    features = np.column_stack([sums_ms, [4.0, 5.0, 6.0, 7.0], np.zeros((4, 8))])
    fitted = Calibration.fit(features, 10 * (sums_ms - 3.9))
    table = table.with_entries({}, calibration=fitted)
    assert sum(table.share_ms(key) for key in layer_keys(network)) < 0
    assert table.latency(network).latency_ms > 0
