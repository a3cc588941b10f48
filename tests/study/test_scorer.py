import numpy as np
import pytest

from nas.accuracy.imagenet import shipped_predictor
from nas.cost import cost, layer_cost
from nas.latency.calibration import FEATURES, Calibration, ErrorSummary
from nas.latency.table import Entry, LatencyTable, TableHeader
from nas.study.scorer import INACTIVE, BatchScorer, layer_latency
from search_spaces.layers import LayerKey, layer_keys, reachable_layer_keys
from search_spaces.references import reference
from search_spaces.space import NotInSpaceError, SearchSpace

SPACE = SearchSpace.from_dict(
    {
        "name": "mixed",
        "resolutions": [128, 224],
        "width_multipliers": [0.75, 1.0],
        "stems": [{"channels": 16, "activation": "hswish"}, {"channels": 32}],
        "stages": [
            {"stride": 1, "depths": [0, 1], "widths": [16], "expansions": [1]},
            {
                "stride": 2,
                "depths": [1, 2],
                "widths": [24, 32],
                "kernels": [3, 5],
                "expansions": [3, 6],
                "se": [False, True],
            },
            {
                "stride": 2,
                "width": 40,
                "layers": 3,
                "candidates": [{"kind": "skip"}, {"kernel": 3}, {"kernel": 5, "expansion": 3, "se": True}],
            },
            {"stride": 2, "depths": [2, 3], "widths": [80], "per_block": ["kernels"], "kernels": [3, 5]},
            {"stride": 2, "depths": [1], "widths": [160], "kind": "depthwise_separable", "expansions": [1]},
        ],
        "heads": [
            {"conv_channels": 1280},
            {"conv_ratio": 6, "hidden_channels": 1024, "activation": "hswish"},
        ],
    }
)


def _latency(key: LayerKey, stride: int = 1) -> float:
    return 0.01 + layer_cost(key).macs * 1e-7


@pytest.fixture(scope="module")
def scorer() -> BatchScorer:
    return BatchScorer(SPACE, shipped_predictor(), _latency)


def test_scores_are_those_of_single_networks(scorer: BatchScorer) -> None:
    rows = scorer.sample(200, np.random.default_rng(0))
    scores = scorer.score(rows)
    refused = 0
    for number, row in enumerate(rows):
        architecture = SPACE.build(scorer.decode(row))
        keys = layer_keys(architecture)
        assert scores.latency_ms[number] == pytest.approx(sum(map(_latency, keys)))
        spent = cost(architecture)
        assert (scores.macs[number], scores.parameters[number]) == (spent.macs, spent.parameters)
        try:
            single = shipped_predictor().predict(architecture)
        except ValueError:
            refused += 1
            assert np.isnan(scores.top1[number])
        else:
            assert (scores.top1[number], scores.deviation[number]) == pytest.approx(single, abs=1e-3)
    assert 0 < refused < len(rows)  # strided skips


def test_universal_bottlenecks_are_scored_like_single_networks(mobilenetv4_space: SearchSpace) -> None:
    space = mobilenetv4_space.restricted([192])
    scorer = BatchScorer(space, shipped_predictor(), _latency)
    rows = scorer.sample(50, np.random.default_rng(0))
    scores = scorer.score(rows)
    assert np.isnan(scores.top1).all()  # no such network was fitted
    for number, row in enumerate(rows):
        architecture = space.build(scorer.decode(row))
        spent = cost(architecture)
        assert (scores.macs[number], scores.parameters[number]) == (spent.macs, spent.parameters)
        assert scores.latency_ms[number] == pytest.approx(sum(map(_latency, layer_keys(architecture))))


def test_latencies_are_those_of_a_calibrated_table() -> None:
    unknown = ErrorSummary(0, 0, 0, 0, 0, 0, 0, 0)
    calibration = Calibration(tuple(0.9 / 2**n for n in range(len(FEATURES))), unknown, unknown)
    header = TableHeader("host", "cpu", "onnxruntime", "1", "fp32", 1, "2026-01-01", calibration=calibration)
    entries = {key: Entry(_latency(key), 0.0, 9, "measured") for key in reachable_layer_keys(SPACE)}
    table = LatencyTable(header, entries)
    scorer = BatchScorer(SPACE, layer_latency=layer_latency(table))
    rows = scorer.sample(20, np.random.default_rng(5))
    for row, latency_ms in zip(rows, scorer.score(rows).latency_ms, strict=True):
        assert latency_ms == pytest.approx(table.latency(SPACE.build(scorer.decode(row))).latency_ms)


def test_rows_are_the_parameters_of_the_space(scorer: BatchScorer) -> None:
    rows = scorer.sample(100, np.random.default_rng(1))
    for row in rows:
        parameters = scorer.decode(row)
        asked: list[str] = []
        SPACE.compose(lambda name, _, asked=asked, known=parameters: asked.append(name) or known[name])  # type: ignore[misc]
        assert sorted(asked) == sorted(parameters)  # the active ones and no others
        assert np.array_equal(scorer.encode(parameters), row)
    with pytest.raises(NotInSpaceError, match="has no stem='conv7x7'"):
        scorer.encode({"stem": "conv7x7"})


def test_inactive_cells_are_ignored(scorer: BatchScorer) -> None:
    rows = scorer.sample(50, np.random.default_rng(2))
    assert (rows == INACTIVE).any()
    noise = np.random.default_rng(3).integers(0, scorer.counts, rows.shape)
    filled = np.where(rows == INACTIVE, noise, rows)
    assert np.array_equal(scorer.canonical(filled), rows)
    assert np.array_equal(scorer.score(filled).latency_ms, scorer.score(rows).latency_ms)


def test_asks_for_reachable_layers_only() -> None:
    reachable = reachable_layer_keys(SPACE)
    asked: set[LayerKey] = set()

    def latency(key: LayerKey, stride: int) -> float:
        asked.add(key)
        return 1.0

    BatchScorer(SPACE, layer_latency=latency)
    assert asked == reachable


def test_the_default_space_holds_its_references(mobilenet_space: SearchSpace) -> None:
    scorer = BatchScorer(mobilenet_space, shipped_predictor())
    architecture = reference("mobilenet_v3_large")
    scores = scorer.score(scorer.encode(mobilenet_space.encode(architecture))[None])
    assert scores.macs[0] == cost(architecture).macs
    assert scores.top1[0] == pytest.approx(shipped_predictor().predict(architecture)[0])
    assert len(scorer.score(np.zeros((0, len(scorer.counts)), np.int64)).top1) == 0
