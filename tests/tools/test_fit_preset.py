"""Fitting estimates: on made-up devices whose rates are known."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.command import command
from nas.latency.preset import EstimatedLayers, EstimateError, work
from search_spaces.blocks import Block
from search_spaces.layers import LayerKey, layer_keys
from search_spaces.ops import Activation
from search_spaces.references import reference
from tools import fit_preset
from tools.fit_preset import fit_rates, fit_shape, left_out_errors, level, table_errors
from tools.preset_sources import Group, Timed, network_work, read_fbnet_blocks

HEADER = (
    "in_channels,out_channels,stride,in_resolution,expansion,kernel,groups,"
    "latency_ms_minus_skip,skip_is_identity"
)
NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")


@pytest.fixture(scope="module")
def rates() -> np.ndarray:
    return np.array(EstimatedLayers.load("rpi4").coefficients)


@pytest.fixture(scope="module")
def blocks(rates: np.ndarray) -> list[Timed]:
    found = []
    for size, channels in ((56, 24), (32, 16), (16, 32), (8, 64), (8, 112), (4, 184)):
        for kernel in (3, 5):
            for expansion in (1, 3, 6):
                activations: tuple[Activation, ...] = ("relu", "hswish")
                for activation in activations:
                    block = Block(
                        "inverted_residual",
                        kernel,
                        channels,
                        channels * expansion,
                        channels,
                        1,
                        activation,
                        activation == "hswish",
                    )
                    done = work(LayerKey(size, channels, block))
                    found.append(Timed(f"{size},{channels}", done, float(done @ rates)))
    return found


def _group(runtime: str, rates: np.ndarray, factor: float) -> Group:
    rows = []
    for name in NETWORKS:
        done = network_work(reference(name))
        rows.append(Timed(name, done, factor * float(done @ rates)))
    return Group(runtime, f"made up {factor}", 1.0, tuple(rows))


def test_work_of_a_network_is_that_of_its_layers() -> None:
    network = reference("mobilenet_v3_small")
    assert network_work(network) == pytest.approx(np.sum([work(key) for key in layer_keys(network)], axis=0))


def test_a_table_s_rates_are_found_again(blocks: list[Timed], rates: np.ndarray) -> None:
    assert fit_rates(blocks) == pytest.approx(rates, rel=1e-3)
    assert np.abs(table_errors(blocks)).max() < 1e-3


def test_the_shape_is_found_whatever_the_levels(blocks: list[Timed], rates: np.ndarray) -> None:
    groups = [_group("ncnn", rates, factor) for factor in (0.1, 1.0, 30.0)]
    shape = fit_shape([blocks], groups)
    # The fit is held, weakly, to a Cortex-A72's rates: what little work depends on may move by a tenth.
    assert shape / shape[0] == pytest.approx(rates / rates[0], rel=0.1)
    assert level(groups[2].rows, rates) == pytest.approx(30)
    assert np.abs(left_out_errors(groups[1].rows, shape)).max() < 0.01


def test_one_network_off_is_seen_when_it_is_left_out(rates: np.ndarray) -> None:
    rows = list(_group("ncnn", rates, 1.0).rows)
    rows[0] = replace(rows[0], latency_ms=2 * rows[0].latency_ms)
    errors = left_out_errors(rows, rates)
    assert errors[0] == pytest.approx(-0.5)
    assert np.all(errors[1:] > 0.2)


def test_block_latencies_are_read_once_each_and_without_channel_shuffle(tmp_path: Path) -> None:
    rows = ["16,16,1,32,1,3,1,0.5,True", "16,16,1,32,1,3,2,0.9,True", "16,16,1,32,1,3,1,0.5,True"]
    path = tmp_path / "blocks.csv"
    path.write_text("\n".join([HEADER, *rows, "16,24,2,32,6,5,1,2.5,False"]) + "\n")
    absolute, relative = read_fbnet_blocks(path)
    block = Block("inverted_residual", 3, 16, 16, 16, 1, "relu")
    assert absolute.work == pytest.approx(work(LayerKey(32, 16, block)))
    block = Block("inverted_residual", 5, 16, 96, 24, 2, "relu")
    skip = Block("skip", 1, 16, 16, 24, 2, "relu", False, False)
    assert relative.work == pytest.approx(work(LayerKey(32, 16, block)) - work(LayerKey(32, 16, skip)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("16,16,1,32,one,3,1,0.5,True", "line 2"),
        ("16,16,1,32,1,3,1,-0.5,True", "line 2: a latency must be positive"),
        ("16,16,1,32,1,3,1,nan,True", "line 2: a latency must be positive"),
        ("16,16,1,32,1,3,2,0.5,True", "no block that can be used"),
    ],
)
def test_a_line_that_is_no_block_is_named(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "blocks.csv"
    path.write_text(f"{HEADER}\n{row}\n")
    with pytest.raises(EstimateError, match=message):
        read_fbnet_blocks(path)


def test_blocks_of_ones_own_are_labelled_as_told_and_written_only_where_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rates: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "blocks.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        for size, channels in ((32, 16), (16, 32), (8, 64), (4, 184)):
            for kernel in (3, 5):
                block = Block("inverted_residual", kernel, channels, channels * 3, channels, 1, "relu")
                latency_ms = work(LayerKey(size, channels, block)) @ rates
                writer.writerow([channels, channels, 1, size, 3, kernel, 1, latency_ms, True])
    shipped = {each: each.read_bytes() for each in Path("nas/latency/presets").glob("*.json")}
    monkeypatch.setattr(
        sys,
        "argv",
        ["fit", f"blocks={path}", "device=my_board", "board=Board of mine", "source=timed by me"],
    )
    command("fit_preset", fit_preset.FitConfig, fit_preset.main)
    assert "Board of mine" in capsys.readouterr().out
    assert {each: each.read_bytes() for each in shipped} == shipped
    monkeypatch.setattr(sys, "argv", [*sys.argv, f"output={tmp_path / 'made'}"])
    command("fit_preset", fit_preset.FitConfig, fit_preset.main)
    made = EstimatedLayers.from_json((tmp_path / "made" / "my_board.json").read_text())
    assert (made.device, made.board, made.source) == (
        "my_board",
        "Board of mine",
        "timed by me",
    )
