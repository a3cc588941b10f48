"""Training on Fashion-MNIST, with protocols fixed beforehand: supernet, equal latency, transfer.

    python -m tools.training_benchmark ranking  --images /usr/share/datasets/fashion-mnist
    python -m tools.training_benchmark equal    --images /usr/share/datasets/fashion-mnist
    python -m tools.training_benchmark transfer --images /usr/share/datasets/fashion-mnist

All latencies are medians end to end, of all networks in the same rounds, ONNX Runtime, fp32, one thread. Each
protocol draws random members of a space, with a seed, and times them first. Candidates are ranked by images
kept from training; what is reported is top-1 on the test images, which choose nothing.

ranking: 24 members of ``tiny_images`` whose latencies are spread evenly over what was drawn are trained alone
    with each seed; with each seed a supernet of the whole space is trained. Kendall's tau is between the
    supernet's accuracies and those trained alone; cost is processor time of one thread.
equal: of the members of ``small_images`` not slower than MobileNetV3-Small, and not much faster, the first
    few are trained briefly and the best is chosen. It, MobileNetV3-Small, and V2 and V1 at the width whose
    latency is nearest are trained by one recipe with each seed.
transfer: on few images, from ImageNet weights of EfficientNet-Lite0: of the members of ``efficientnet_lite``
    that take at most 70 % of its latency, and not much less, the first few inherit and are trained briefly,
    and the best is chosen. Then with each seed: it, inherited; it, from scratch; EfficientNet-Lite0 as a
    whole; EfficientNet-Lite0 with its width scaled to at most 70 % of the latency, inherited.

Every step is kept in a file of JSON lines, and the same command goes on from it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from nas.accuracy.supernet import SupernetAccuracy
from nas.accuracy.train import Recipe, fit, judge_on
from nas.data import DatasetSettings, ImageSource, Split, TensorImages, load
from nas.help import CONFIG_FOLDER
from nas.latency.deployment import measured_deployments
from nas.measuring.progress import ProfileProgress
from nas.network import Network
from nas.pictures.augment import Augment
from nas.runtimes.runtime import Runtime
from nas.training.final import FinalTraining
from nas.training.inherit import inherit
from nas.training.pretrained import pretrained
from nas.training.processes import Processes
from nas.training.supernet import Supernet
from nas.training.supernet_training import SupernetTraining
from nas.training_recipes import FinalRecipe, SupernetRecipe
from search_spaces.architecture import Architecture
from search_spaces.references import reference
from search_spaces.space import SearchSpace

CLASSES = 10
_ONE_PROCESS = Processes(0, 1, torch.device("cpu"))
_ROUNDS = 20
# Of the drawn members that protocols look at.
_DRAWN = 300

# ranking
_MEMBERS, _ALONE_EPOCHS, _SUPERNET_EPOCHS, _RANKING_IMAGES, _JUDGED = 24, 10, 5, 10_000, 1_000
_EVALUATIONS, _STATISTICS_BATCHES = 1_000, 4
# equal
_BOUND = "mobilenet_v3_small"
_SCALED = ("mobilenet_v2", "mobilenet_v1")
_WIDTHS = (10, 15, 20, 25, 30, 35, 40, 50, 60, 75, 100, 125)
_EQUAL_IMAGES, _EQUAL_EPOCHS = 6_400, 8
# transfer
_SOURCE = "efficientnet_lite0"
_TRANSFER_IMAGES, _TRANSFER_SIDE, _TRANSFER_EPOCHS = 2_000, 48, 10
_TRANSFER_SHARE = 0.7
# equal and transfer: a member much faster than the bound is no answer to it.
_LEAST_SHARE = {"equal": 0.6, "transfer": 0.8}
_CANDIDATES, _BRIEF_EPOCHS = 10, 3
CHOSEN = "chosen"


class Runs:
    """Results by name, kept as JSON lines.

    Args:
        path: the file; what it holds is not computed again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known: dict[str, object] = dict(json.loads(line) for line in lines)

    def get(self, name: str, compute: Callable[..., Any], *arguments: Any) -> Any:
        """The value kept under a name, computed where there is none."""
        if name not in self._known:
            self._known[name] = compute(*arguments)
            with self._path.open("a") as file:
                file.write(json.dumps([name, self._known[name]]) + "\n")
        return self._known[name]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.training_benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    protocols = {"ranking": ranking, "equal": equal_latency, "transfer": transfer}
    parser.add_argument("protocol", choices=protocols)
    parser.add_argument("--images", type=Path, required=True, help="folder of Fashion-MNIST")
    parser.add_argument("--runs", type=Path, help="file of JSON lines; default: training-PROTOCOL.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = options.runs or Path(f"training-{options.protocol}.jsonl")
    protocols[options.protocol](options.images, Runs(path), path.absolute().parent, options.seeds)


# -- protocols -------------------------------------------------------------------------------------


def ranking(images: Path, runs: Runs, folder: Path, seeds: int) -> None:
    """Print the rank correlation of a supernet's members with training them alone.

    Args:
        images: that networks are trained on.
        runs: what is known from before.
        folder: for tables and weights.
        seeds: trainings of each network.
    """
    space = _space("tiny_images")
    split = _images(images, 32, _RANKING_IMAGES, validation=_JUDGED)
    drawn = members(space, _DRAWN, seed=0)
    timed = runs.get("latencies", latencies_ms, drawn, folder)
    chosen = spread(timed, _MEMBERS)
    taus = []
    for seed in range(seeds):
        alone = {name: runs.get(f"alone {name} {seed}", _alone, drawn[name], split, seed) for name in chosen}
        print(f"seed {seed}: {len(alone)} members alone, {_seconds(alone):.0f} s", flush=True)
        checkpoint = folder / f"supernet-{seed}.safetensors"
        trained_s = runs.get(f"supernet {seed}", _supernet, space, split, seed, checkpoint)
        accuracy = SupernetAccuracy(checkpoint, lambda _: split, _STATISTICS_BATCHES)
        shared = {name: runs.get(f"shared {name} {seed}", _shared, accuracy, drawn[name]) for name in chosen}
        evaluated_s = _seconds(shared) / len(shared) * _EVALUATIONS
        tau = _tau(alone, shared)
        taus.append(tau)
        cost = (trained_s + evaluated_s) / _seconds(alone)
        print(
            f"seed {seed}: tau {tau:.3f}; supernet {trained_s:.0f} s, {_EVALUATIONS} evaluations "
            f"{evaluated_s:.0f} s: {cost:.1%} of training {len(alone)} alone",
            flush=True,
        )
    print(f"tau over seeds: {np.mean(taus):.3f}, {min(taus):.3f} to {max(taus):.3f}")
    between = [
        _tau(*({name: runs.get(f"alone {name} {seed}", dict) for name in chosen} for seed in pair))
        for pair in ((a, b) for a in range(seeds) for b in range(a))
    ]
    if between:
        print(f"tau between seeds of training alone: {np.mean(between):.3f}")
    top1 = [np.mean([runs.get(f"alone {name} {seed}", dict)[0] for seed in range(seeds)]) for name in chosen]
    latency = [timed[name] for name in chosen]
    print(
        f"members: {min(latency):.3f} to {max(latency):.3f} ms, alone {min(top1):.1f} to {max(top1):.1f} %; "
        f"tau of latency itself against accuracy: {kendalltau(latency, top1).statistic:.3f}"
    )


def equal_latency(images: Path, runs: Runs, folder: Path, seeds: int) -> None:
    """A chosen network against hand-designed ones of the same latency.

    Args:
        images: that networks are trained on.
        runs: what is known from before.
        folder: for tables and weights.
        seeds: trainings of each network.
    """
    split = _images(images, 32, _EQUAL_IMAGES)
    drawn = members(_space("small_images"), _DRAWN, seed=0)
    scaled = [f"{family}_{width:03d}" for family in _SCALED for width in _WIDTHS]
    known = {name: reference(name, 32, CLASSES) for name in (_BOUND, *scaled)}
    timed = runs.get("latencies", latencies_ms, {**known, **drawn}, folder)
    bound_ms = timed[_BOUND]
    recipe = FinalRecipe(epochs=_EQUAL_EPOCHS, warmup_epochs=0.5, ema=0.98, augment="none")
    candidates = within(timed, list(drawn), bound_ms, _LEAST_SHARE["equal"])
    best = _best(runs, candidates, lambda name: Network(drawn[name]), split, recipe)
    finalists = {CHOSEN: best, _BOUND: _BOUND}
    finalists |= {name: name for family in _SCALED for name in [nearest(timed, family, bound_ms)]}
    architectures = {**known, **drawn}
    found = _finals(
        runs,
        {title: partial(Network, architectures[name]) for title, name in finalists.items()},
        split,
        recipe,
        seeds,
    )
    _table({title: (timed[finalists[title]], values) for title, values in found.items()})


def transfer(images: Path, runs: Runs, folder: Path, seeds: int) -> None:
    """On few images: a chosen network that inherits ImageNet weights, against three others.

    Args:
        images: that networks are trained on.
        runs: what is known from before.
        folder: for tables and weights.
        seeds: trainings of each network.
    """
    side = _TRANSFER_SIDE
    split = _images(images, side, _TRANSFER_IMAGES)
    source = pretrained(_SOURCE)
    drawn = members(replace(_space("efficientnet_lite"), resolutions=(side,)), _DRAWN, seed=0)
    scaled = [f"{_SOURCE}_{width:03d}" for width in range(40, 100, 5)]
    known = {name: reference(name, side, CLASSES) for name in (_SOURCE, *scaled)}
    timed = runs.get("latencies", latencies_ms, {**known, **drawn}, folder)
    bound_ms = _TRANSFER_SHARE * timed[_SOURCE]
    recipe = FinalRecipe(
        epochs=_TRANSFER_EPOCHS, batch_size=64, warmup_epochs=1, ema=0.95, augment="none", learning_rate=0.001
    )

    def inherited(architecture: Architecture) -> Network:
        network = Network(architecture)
        inherit(network, source, _SOURCE)
        return network

    candidates = within(timed, list(drawn), bound_ms, _LEAST_SHARE["transfer"])
    best = _best(runs, candidates, lambda name: inherited(drawn[name]), split, recipe)
    narrow = max((name for name in scaled if timed[name] <= bound_ms), key=lambda name: timed[name])
    arms: dict[str, tuple[str, Callable[[], Network]]] = {
        "chosen, inherited": (best, lambda: inherited(drawn[best])),
        "(a) chosen, from scratch": (best, lambda: Network(drawn[best])),
        f"(b) {_SOURCE}": (_SOURCE, lambda: inherited(known[_SOURCE])),
        f"(c) {narrow}, inherited": (narrow, lambda: inherited(known[narrow])),
    }
    found = _finals(runs, {title: made for title, (_, made) in arms.items()}, split, recipe, seeds)
    _table({title: (timed[arms[title][0]], values) for title, values in found.items()})


# -- what they share -------------------------------------------------------------------------------


def members(space: SearchSpace, count: int, seed: int) -> dict[str, Architecture]:
    """Random members of a space, by id.

    Args:
        space: the space.
        count: members wanted.
        seed: of the choice.
    """
    generator = np.random.default_rng(seed)
    found: dict[str, Architecture] = {}
    choices = space.parameters()
    while len(found) < count:
        drawn = {name: values[int(generator.integers(len(values)))] for name, values in choices.items()}
        built = replace(space.build(drawn), classes=CLASSES)
        found[built.id] = built
    return found


def latencies_ms(networks: Mapping[str, Architecture], folder: Path) -> dict[str, float]:
    """Median of each network, end to end, all in the same rounds."""
    with measured_deployments(networks, [Runtime()], folder, _ROUNDS, 0, ProfileProgress()) as (timed, _):
        return {each.network: each.p50_ms for each in timed}


def spread(latencies: Mapping[str, float], count: int) -> list[str]:
    """Members whose latencies lie evenly between the fastest and the slowest."""
    left = dict(latencies)
    found = []
    for wanted in np.linspace(min(left.values()), max(left.values()), count):
        nearest_member = min(left, key=lambda name: abs(left[name] - wanted))
        found.append(nearest_member)
        del left[nearest_member]
    return found


def nearest(latencies: Mapping[str, float], family: str, bound_ms: float) -> str:
    """The width of a family whose latency is nearest to a bound.

    Args:
        latencies: milliseconds, by name.
        family: beginning of the names.
        bound_ms: milliseconds.
    """
    widths = [name for name in latencies if name.startswith(f"{family}_") and name[-3:].isdecimal()]
    return min(widths, key=lambda name: abs(latencies[name] - bound_ms))


def within(
    latencies: Mapping[str, float], drawn: Sequence[str], bound_ms: float, least_share: float
) -> list[str]:
    """The first members that are not slower than a bound, and not faster than a share of it.

    Args:
        latencies: milliseconds, by name.
        drawn: names of the members.
        bound_ms: milliseconds.
        least_share: of the bound that a member takes at least.
    """
    fitting = [each for each in drawn if least_share * bound_ms <= latencies[each] <= bound_ms]
    print(f"bound {bound_ms:.3f} ms: {len(fitting)} of {len(drawn)} drawn members fit", flush=True)
    if not fitting:
        raise SystemExit("no drawn member fits the bound")
    return fitting[:_CANDIDATES]


def _space(name: str) -> SearchSpace:
    return replace(SearchSpace.from_yaml(CONFIG_FOLDER / "search_space" / f"{name}.yaml"), classes=CLASSES)


def _images(root: Path, side: int, limit: int, validation: int = 2_000) -> Split:
    """Fashion-MNIST at a resolution, with some of the images that rank candidates."""
    split = load(DatasetSettings("fashion_mnist", root, validation_share=0.1, limit=limit), side)
    kept = split.validation
    return replace(
        split, validation=TensorImages(kept.at(range(validation)), kept.labels[:validation], Augment())
    )


def _best(
    runs: Runs, candidates: Sequence[str], made: Callable[[str], Network], split: Split, recipe: FinalRecipe
) -> str:
    """The candidate that does best on the images that rank, after a brief training."""
    brief = replace(recipe, epochs=_BRIEF_EPOCHS)
    judged: dict[str, float] = {}
    for name in candidates:
        judged[name], _ = runs.get(
            f"brief {name}", _trained, partial(made, name), split, brief, split.validation
        )
        print(f"brief {name}: {judged[name]:.2f} %", flush=True)
    return max(judged, key=lambda name: judged[name])


def _finals(
    runs: Runs, networks: Mapping[str, Callable[[], Network]], split: Split, recipe: FinalRecipe, seeds: int
) -> dict[str, list[tuple[float, float]]]:
    """Top-1 on the test images and seconds, by network: seed by seed, so that all get equally many."""
    assert split.test is not None
    found: dict[str, list[tuple[float, float]]] = {title: [] for title in networks}
    for seed in range(seeds):
        here = replace(recipe, seed=seed)
        for title, made in networks.items():
            found[title].append(runs.get(f"final {title} {seed}", _trained, made, split, here, split.test))
            print(f"seed {seed}, {title}: {found[title][-1][0]:.2f} %", flush=True)
    return found


def _trained(
    made: Callable[[], Network], split: Split, recipe: FinalRecipe, judged_on: ImageSource
) -> tuple[float, float]:
    """Top-1 in percent, and seconds of training."""
    torch.manual_seed(recipe.seed)
    training = FinalTraining(made(), split, recipe, _ONE_PROCESS)
    began = time.process_time()
    training.run()
    return judge_on(training.result, judged_on, split.classes, 500).top1, time.process_time() - began


def _alone(architecture: Architecture, split: Split, seed: int) -> tuple[float, float]:
    """Top-1 in percent on the test images, and seconds of training alone."""
    assert split.test is not None
    recipe = Recipe(epochs=_ALONE_EPOCHS, batch_size=128, threads=1, device="cpu", seed=seed)
    began = time.process_time()
    network = fit(architecture, split, recipe)
    seconds = time.process_time() - began
    return judge_on(network, split.test, split.classes, 500).top1, seconds


def _supernet(space: SearchSpace, split: Split, seed: int, checkpoint: Path) -> float:
    """Train a supernet into a checkpoint; seconds."""
    torch.manual_seed(seed)
    recipe = SupernetRecipe(epochs=_SUPERNET_EPOCHS, batch_size=128, seed=seed)
    began = time.process_time()
    SupernetTraining(Supernet(space), split, recipe, _ONE_PROCESS, checkpoint).run()
    return time.process_time() - began


def _shared(accuracy: SupernetAccuracy, architecture: Architecture) -> tuple[float, float]:
    """Top-1 in percent with the supernet's weights, and seconds of telling it."""
    began = time.process_time()
    top1 = accuracy.accuracy(architecture).top1
    return top1, time.process_time() - began


def _seconds(results: Mapping[str, tuple[float, float]]) -> float:
    return sum(seconds for _, seconds in results.values())


def _tau(one: Mapping[str, tuple[float, float]], other: Mapping[str, tuple[float, float]]) -> float:
    return float(kendalltau(*([each[name][0] for name in one] for each in (one, other))).statistic)


def _table(found: Mapping[str, tuple[float, Sequence[tuple[float, float]]]]) -> None:
    print("\n| network | latency ms | test top-1 %, mean | standard deviation | seeds | seconds each |")
    print("|---|---|---|---|---|---|")
    for title, (latency_ms, results) in found.items():
        values = [top1 for top1, _ in results]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        each = ", ".join(f"{value:.2f}" for value in values)
        seconds = np.mean([seconds for _, seconds in results])
        figures = f"{latency_ms:.3f} | {np.mean(values):.2f} | {deviation:.2f} | {each} | {seconds:.0f}"
        print(f"| {title} | {figures} |")


if __name__ == "__main__":
    main()
