import json
import random
from dataclasses import replace

import numpy as np
import pytest

from nas.cost import layer_cost
from nas.latency.calibration import ErrorSummary
from nas.latency.heads import HEAD_FEATURES, HeadCost, head_features
from nas.latency.table import Entry, LatencyTable, TableError, TableHeader
from nas.study.scorer import BatchScorer, layer_latency
from search_spaces.architecture import Architecture
from search_spaces.blocks import Head
from search_spaces.gate import Gate
from search_spaces.layers import layer_keys, operators, reachable_layer_keys
from search_spaces.ops import Pool, convolutions
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from search_spaces.stage import Stage
from search_spaces.tasks import Task, TaskError, TaskNetwork, check_space, strided_keys

TASKS = [Task("segmentation", 21), Task("detection", 91)]
UNKNOWN = ErrorSummary(0, 0, 0, 0, 0, 0, 0, 0)
# At 96 and 192 px the same layers stand at different strides.
SPACE = SearchSpace.from_dict(
    {
        "name": "tapped",
        "resolutions": [96, 192],
        "width_multipliers": [0.5, 1.0],
        "stems": [{"channels": 16, "activation": "hswish"}],
        "stages": [
            {"stride": 2, "depths": [1, 2], "widths": [16], "expansions": [1, 3]},
            {"stride": 2, "depths": [1, 2], "widths": [16, 24], "expansions": [3]},
            {"stride": 1, "depths": [0, 1], "widths": [40], "expansions": [3]},
            {"stride": 2, "depths": [1, 2], "widths": [16, 40], "expansions": [3, 4]},
            {"stride": 2, "depths": [1], "widths": [16, 80], "expansions": [1, 3, 6], "se": [False, True]},
        ],
        "heads": [{"conv_channels": 320}, {"conv_ratio": 6, "hidden_channels": 128}],
    }
)


def _whole_work(network: TaskNetwork) -> np.ndarray:
    """MACs, weights and values of the head and of the convolution before the classifier's pooling."""
    last = operators(layer_keys(network.architecture)[-1])
    trunk = last[: next(number for number, each in enumerate(last) if isinstance(each, Pool))]
    parts = [trunk, *network.task.head(*network.taps)]
    convs = [each for made_of in parts for each in convolutions(made_of)]
    return np.array([[each.macs, each.weights, each.out_values] for each in convs]).sum(axis=0) / 1e6


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenetv4_conv_small"]
)
def test_layers_share_out_the_whole_head(name: str, task: Task) -> None:
    architecture = reference(name, 192)
    shares = np.array([head_features(task, key, stride) for key, stride in strided_keys(architecture)])
    assert shares.shape[1] == len(HEAD_FEATURES)
    total = shares.sum(axis=0)
    assert total[:2] == pytest.approx([1.0, 192**2 / 1e6])
    assert total[2:] == pytest.approx(_whole_work(TaskNetwork(architecture, task)))
    assert (shares > 0).any(axis=1).sum() == 3  # stem, the layer that takes the finer map, classifier


@pytest.mark.parametrize("task", TASKS)
def test_a_head_is_found_again_in_whole_models(task: Task) -> None:
    generator = np.random.default_rng(0)
    networks = [SPACE.sample(random.Random(seed)) for seed in range(40)]
    truth = np.array([0.05, 4.0, 0.02, 0.1, 0.3])
    features = np.array(
        [
            np.sum([head_features(task, *each) for each in strided_keys(network)], axis=0)
            for network in networks
        ]
    )
    backbones_ms = generator.uniform(0.1, 1, len(networks))
    measured_ms = (backbones_ms + features @ truth) * generator.normal(1, 0.01, len(networks))
    head = HeadCost.fit(task, networks, backbones_ms, measured_ms)
    assert head.left_out.networks == 40
    assert head.left_out.mape < 0.02
    assert features @ np.array(head.coefficients) == pytest.approx(features @ truth, rel=0.1)
    assert min(head.coefficients) >= 0
    assert HeadCost.from_dict(json.loads(json.dumps(head.to_dict())), Gate("table")) == head
    with pytest.raises(ValueError, match="at least 10 whole models, not 3"):
        HeadCost.fit(task, networks[:3], backbones_ms[:3], measured_ms[:3])


def _table(task: Task | None) -> LatencyTable:
    head = HeadCost(task, (0.1, 3.0, 0.02, 0.1, 0.3), UNKNOWN) if task else None
    header = TableHeader("host", "cpu", "onnxruntime", "1", "fp32", 1, "2026-01-01", head=head)
    entries = {
        key: Entry(0.01 + layer_cost(key).macs * 1e-7, 0.0, 9, "measured")
        for key in reachable_layer_keys(SPACE)
    }
    return LatencyTable(header, entries)


@pytest.mark.parametrize("task", TASKS)
def test_screened_and_single_latencies_are_those_of_whole_models(task: Task) -> None:
    table, plain = _table(task), _table(None)
    scorer = BatchScorer(SPACE, layer_latency=layer_latency(table))
    rows = scorer.sample(200, np.random.default_rng(0))
    differences = set()
    for row, latency_ms in zip(rows, scorer.score(rows).latency_ms, strict=True):
        network = SPACE.build(scorer.decode(row))
        found = table.latency(network).latency_ms
        assert latency_ms == pytest.approx(found)
        last = layer_keys(network)[-1]
        assert isinstance(last.part, Head)
        work = np.array([1, network.resolution**2 / 1e6, *_whole_work(TaskNetwork(network, task))])
        assert table.header.head is not None
        added = float(work @ np.array(table.header.head.coefficients))
        assert found == pytest.approx(plain.latency(network).latency_ms - plain.share_ms(last) + added)
        differences.add(round(added, 6))
    assert len(differences) > 10  # a head costs what the maps it takes make it cost


def test_a_table_keeps_its_head(tmp_path) -> None:
    table = _table(TASKS[0])
    table.save(tmp_path)
    assert LatencyTable.load(tmp_path).header == table.header
    keys = list(table.entries)
    assert table.digest(keys) != _table(None).digest(keys)
    _table(None).save(tmp_path)
    assert '"head"' not in (tmp_path / "table.json").read_text()
    path = tmp_path / "table.json"
    table.save(tmp_path)
    path.write_text(path.read_text().replace('"segmentation"', '"telepathy"'))
    with pytest.raises(TableError, match="telepathy"):
        LatencyTable.load(tmp_path)


def test_spaces_that_do_not_suit_are_refused() -> None:
    task = TASKS[0]
    check_space(task, SPACE)
    small = replace(SPACE, resolutions=(32,))
    with pytest.raises(TaskError, match="at least 64 px, but the space 'tapped' has 32"):
        check_space(task, small)
    stages = SPACE.stages
    with pytest.raises(TaskError, match="end at 16: it needs four stages of stride 2"):
        check_space(task, replace(SPACE, stages=stages[:-1]))
    assert isinstance(stages[-1], Stage)
    skipped = (*stages[:-1], replace(stages[-1], depths=(0, 1)))
    with pytest.raises(TaskError, match="stage 5 may be left out"):
        check_space(task, replace(SPACE, stages=skipped))


def test_the_default_space_suits(mobilenet_space: SearchSpace) -> None:
    for task in TASKS:
        check_space(task, mobilenet_space)


def test_tables_of_whole_models_order_networks_otherwise() -> None:
    """Channels of the maps that are tapped count; those of the classifier do not."""
    table = _table(TASKS[0])

    def latency_ms(network: Architecture) -> float:
        keys = {key: Entry(1.0, 0.0, 9, "measured") for key in layer_keys(network)}
        return table.with_entries(keys).latency(network).latency_ms

    network = reference("mobilenet_v3_large", 96)
    assert latency_ms(replace(network, classes=10_000)) == latency_ms(network)
    narrow = replace(network, head=replace(network.head, conv_channels=96))
    assert latency_ms(narrow) < latency_ms(network)
