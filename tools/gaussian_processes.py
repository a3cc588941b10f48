"""Gaussian processes of the project against others of scikit-learn, each on the data that it is there for.

    python -m tools.gaussian_processes layers --table results/latency/host-onnxruntime-fp32-1t
    python -m tools.gaussian_processes study
    python -m tools.gaussian_processes accuracy --data FOLDER

layers: measured layers of a table, five-fold. study: networks of two small spaces and of the default one;
the accuracies of some, drawn at random, tell those of a thousand others. accuracy: networks of
Accel-NASBench and of once-for-all's supernet, some tell others; published networks, a fifth of the tables
left out at a time.

Errors are root mean squares, seconds those of one processor. Accuracies of ``study`` are predicted, with a
scatter of 0.15 points; latencies there are the shipped estimate of a Raspberry Pi 4.
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Kernel, Matern, WhiteKernel
from sklearn.model_selection import GroupKFold, KFold
from threadpoolctl import threadpool_limits

from nas.accuracy.csv import read_accel, read_supernet
from nas.accuracy.features import features_of
from nas.accuracy.fit import Effort, fit_regression
from nas.accuracy.imagenet import shipped_predictor
from nas.accuracy.networks import TrainedNetwork, read_networks
from nas.accuracy.source import Accuracy
from nas.help import CONFIG_FOLDER
from nas.latency.layer_predictor import LayerPredictor, standardised_features
from nas.latency.table import LatencyTable
from nas.study.bayesian import Encoder
from nas.study.neighbourhood import Candidate, Neighbourhood
from nas.study.surrogate import start_kernel
from search_spaces.layers import LayerKey
from search_spaces.space import SearchSpace
from tools.search_benchmark import estimated

Array = NDArray[np.float64]
# Features and targets of networks that are known, features of others: means and deviations of these.
Model = Callable[[Array, Array, Array], tuple[Array, Array]]

_SPACES = ("benchmark_stages", "benchmark_candidates", "mobilenet")
_KNOWN = (25, 100, 400)
_OTHERS = 1_000
_SCATTER = 0.15
_FOLDS = 5


def library(kernel: Callable[[int], Kernel], noisy: bool) -> Model:
    """scikit-learn's process, its hyperparameters those of the largest marginal likelihood.

    Args:
        kernel: for so many features, with noise as its second term.
        noisy: whether deviations are those of observations, noise included.
    """

    def predict(known: Array, targets: Array, others: Array) -> tuple[Array, Array]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            process = GaussianProcessRegressor(kernel(known.shape[1]), normalize_y=True).fit(known, targets)
        mean, deviation = process.predict(others, return_std=True)
        noise = 0.0 if noisy else process.kernel_.k2.noise_level * targets.var()
        return mean, np.sqrt(np.maximum(deviation**2 - noise, 1e-12))

    return predict


def a_length_each(features: int) -> Kernel:
    """The study's kernel with one length scale for each feature."""
    kernel = start_kernel()
    kernel.k1.k2.k2 = Matern(np.ones(features), (0.05, 50.0), nu=2.5)
    return kernel


def smooth(features: int) -> Kernel:
    """Smooth alone, one length scale for all features."""
    return ConstantKernel(1.0, (1e-3, 1e2)) * RBF(1.0, (0.05, 50.0)) + WhiteKernel(0.02, (1e-5, 1.0))


KERNELS = {
    "linear and Matérn, one length": lambda _: start_kernel(),
    "linear and Matérn, a length a feature": a_length_each,
    "Gaussian, one length": smooth,
}


class Rows:
    """Markdown rows of how well models predict."""

    def __init__(self, title: str) -> None:
        print(
            f"\n{title}\n\n| process | error | tau | within 1 sd | within 2 sd | seconds |\n"
            + 6 * "|---"
            + "|"
        )

    def add(self, name: str, truth: Array, mean: Array, deviation: Array, seconds: float) -> None:
        """Print a row."""
        error, tau = np.sqrt(np.mean((mean - truth) ** 2)), kendalltau(mean, truth).statistic
        surprise = np.abs(mean - truth) / deviation
        inside = [f"{np.mean(surprise < limit):.0%}" for limit in (1, 2)]
        print(f"| {name} | {error:.4g} | {tau:.4f} | {' | '.join(inside)} | {seconds:.2f} |", flush=True)


def compare_layers(folder: Path) -> None:
    """Predict the logarithms of measured layers, five-fold."""
    table = LatencyTable.load(folder)
    measured = {key: each.latency_ms for key, each in table.entries.items() if each.source == "measured"}
    keys = sorted(measured, key=str)
    truth = np.log([measured[key] for key in keys])
    places = {key: row for row, key in enumerate(keys)}
    features = {
        key: (kind, row) for kind, rows in standardised_features(keys).items() for key, row in rows.items()
    }
    rows = Rows(f"{len(keys)} measured layers, errors of the logarithm ({table.header.title})")

    def ours(known: Sequence[LayerKey], others: Sequence[LayerKey]) -> tuple[Array, Array]:
        found = LayerPredictor({key: measured[key] for key in known}).predict(others)
        mean = np.log([found[key].latency_ms for key in others])
        return mean, np.array([found[key].deviation_ms / found[key].latency_ms for key in others])

    def by_kind(model: Model) -> Callable[..., tuple[Array, Array]]:
        def predict(known: Sequence[LayerKey], others: Sequence[LayerKey]) -> tuple[Array, Array]:
            mean, deviation = np.empty(len(others)), np.empty(len(others))
            for kind in {features[key][0] for key in others}:
                told = [key for key in known if features[key][0] == kind]
                asked = [row for row, key in enumerate(others) if features[key][0] == kind]
                mean[asked], deviation[asked] = model(
                    np.array([features[key][1] for key in told]),
                    truth[[places[key] for key in told]],
                    np.array([features[others[row]][1] for row in asked]),
                )
            return mean, deviation

        return predict

    models = {
        "of what physics leaves (LayerPredictor)": ours,
        **{f"{name}, a process a kind": by_kind(library(each, True)) for name, each in KERNELS.items()},
    }
    for name, model in models.items():
        mean, deviation, started = np.empty(len(keys)), np.empty(len(keys)), time.process_time()
        for train, test in KFold(_FOLDS, shuffle=True, random_state=0).split(keys):
            mean[test], deviation[test] = model([keys[row] for row in train], [keys[row] for row in test])
        rows.add(name, truth, mean, deviation, time.process_time() - started)


def _networks(name: str, count: int, seed: int) -> tuple[Neighbourhood, list[Candidate], Array]:
    """A space, networks of it, and their accuracies with scatter."""
    space = SearchSpace.from_yaml(CONFIG_FOLDER / "search_space" / f"{name}.yaml")
    neighbourhood = Neighbourhood(space, estimated(space), None)
    generator = random.Random(seed)
    found: dict[str, Candidate] = {}
    while len(found) < count:
        candidate = neighbourhood.random(generator)
        found.setdefault(candidate.architecture.id, candidate)
    chosen = list(found.values())
    told = shipped_predictor().accuracies([each.architecture for each in chosen])
    return neighbourhood, chosen, np.array([each.top1 for each in told if isinstance(each, Accuracy)])


def compare_study() -> None:
    """Predict accuracies of a space's networks from those of some."""
    for name in _SPACES:
        neighbourhood, chosen, truth = _networks(name, max(_KNOWN) + _OTHERS, seed=1)
        encoder = Encoder(neighbourhood)
        features = np.array([encoder.encode(each) for each in chosen])
        noisy = truth + np.random.default_rng(0).normal(0.0, _SCATTER, len(truth))
        models = {title: library(each, False) for title, each in KERNELS.items()}
        for known in _KNOWN:
            rows = Rows(f"{name}: {known} networks known, errors in points of top-1")
            for title, model in models.items():
                started = time.process_time()
                mean, deviation = model(features[:known], noisy[:known], features[-_OTHERS:])
                rows.add(title, truth[-_OTHERS:], mean, deviation, time.process_time() - started)


def compare_accuracy(data: Path, known: int) -> None:
    """Predict logarithms of errors of networks that were trained, from those of others."""
    published = [each for each in read_networks(data / "imagenet_networks.jsonl") if not each.device]
    for name, networks in {
        "Accel-NASBench": read_accel(data / "accel_nasbench_imagenet.csv"),
        "once-for-all's supernet": read_supernet(data / "ofa_supernet.csv"),
    }.items():
        order = np.random.default_rng(0).permutation(len(networks))
        some = [networks[row] for row in order[:known]]
        others = [networks[row] for row in order[known : known + _OTHERS]]
        rows = Rows(f"{name}: {known} networks known, {len(others)} others, errors in points of top-1")
        for title, model in {"the predictor's": _predictors, **_accuracy_models(recipes=False)}.items():
            _judge(rows, title, model, [*published, *some] if model is _predictors else some, others)
    rows = Rows("published networks, tables left out whole in five parts, errors in points of top-1")
    groups = [f"{each.recipe} {each.family}" for each in published]
    splits = list(GroupKFold(_FOLDS).split(published, groups=groups))
    for title, model in {"the predictor's": _predictors, **_accuracy_models(recipes=True)}.items():
        _judge_parts(rows, title, model, published, splits)


AccuracyModel = Callable[[Sequence[TrainedNetwork], Sequence[TrainedNetwork]], tuple[Array, Array]]


def _predictors(known: Sequence[TrainedNetwork], others: Sequence[TrainedNetwork]) -> tuple[Array, Array]:
    found = fit_regression(known, Effort(), 0)
    inputs = torch.from_numpy(features_of([each.architecture for each in others]))
    mean, deviation = found.predict(inputs, [each.recipe for each in others])
    return mean.numpy(), deviation.numpy()


def _accuracy_models(recipes: bool) -> dict[str, AccuracyModel]:
    """scikit-learn's on the predictor's features of networks, with one more for each recipe if wanted."""

    def over(model: Model) -> AccuracyModel:
        def predict(known: Sequence[TrainedNetwork], others: Sequence[TrainedNetwork]) -> tuple[Array, Array]:
            names = sorted({each.recipe for each in known}) if recipes else []

            def rows(networks: Sequence[TrainedNetwork]) -> Array:
                own = np.array([[each.recipe == name for name in names] for each in networks], float)
                inputs = features_of([each.architecture for each in networks])
                return np.hstack([inputs, own.reshape(len(inputs), -1)])

            error = np.log([100 - each.top1 for each in known])
            mean, deviation = model(rows(known), error, rows(others))
            return 100 - np.exp(mean), np.exp(mean) * deviation

        return predict

    return {name: over(library(each, True)) for name, each in KERNELS.items()}


def _judge(
    rows: Rows,
    title: str,
    model: AccuracyModel,
    known: Sequence[TrainedNetwork],
    others: Sequence[TrainedNetwork],
) -> None:
    started = time.process_time()
    mean, deviation = model(known, others)
    rows.add(title, np.array([each.top1 for each in others]), mean, deviation, time.process_time() - started)


def _judge_parts(
    rows: Rows,
    title: str,
    model: AccuracyModel,
    networks: Sequence[TrainedNetwork],
    splits: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
) -> None:
    mean, deviation, started = np.empty(len(networks)), np.empty(len(networks)), time.process_time()
    for train, test in splits:
        mean[test], deviation[test] = model([networks[row] for row in train], [networks[row] for row in test])
    truth = np.array([each.top1 for each in networks])
    rows.add(title, truth, mean, deviation, time.process_time() - started)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gaussian_processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["layers", "study", "accuracy"])
    parser.add_argument("--table", type=Path, help="folder of a measured latency table")
    parser.add_argument("--data", type=Path, help="folder of the files that the predictor is fitted to")
    parser.add_argument("--known", type=int, default=350, help="networks of a benchmark that are known")
    options = parser.parse_args(arguments)
    with threadpool_limits(1):
        if options.what == "layers":
            compare_layers(options.table or parser.error("layers needs --table"))
        elif options.what == "study":
            compare_study()
        else:
            compare_accuracy(options.data or parser.error("accuracy needs --data"), options.known)


if __name__ == "__main__":
    main()
