"""Whether a network chosen for a latency beats hand-designed ones of that latency, all trained alike.

    python -m tools.training_benchmark --images /usr/share/datasets/fashion-mnist

The protocol, fixed before any result was seen:

1. Members of the space ``small_images`` are drawn at random. They, MobileNetV3-Small, and V1 and V2 at
   several widths are timed end to end in the same rounds on this machine (ONNX Runtime, fp32, one thread).
2. The bound is V3-Small's median. V1 and V2 take the width whose latency is nearest to it. Of the members not
   slower than the bound, and not faster than a part of it, the first few are trained briefly and judged on
   images kept from training; the best of them is chosen. Test images are not looked at.
3. The chosen network and the three others are trained by one recipe, each with several seeds, and judged on
   the test images. Mean and standard deviation over seeds are printed, whatever they are.

Every step is kept in a file of JSON lines, and the same command goes on from it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.accuracy.train import Recipe, evaluate, train
from nas.data import DatasetSettings, Split, load
from nas.help import CONFIG_FOLDER
from nas.latency.deployment import measure_deployments
from nas.measuring.progress import ProfileProgress
from nas.network import Network
from nas.runtimes.runtime import Runtime
from nas.training.final import FinalRecipe, FinalTraining
from nas.training.processes import Processes
from search_spaces.architecture import Architecture
from search_spaces.references import reference
from search_spaces.space import SearchSpace

SIDE, CLASSES = 32, 10
TO_BEAT = "mobilenet_v3_small"
_SCALED = ("mobilenet_v2", "mobilenet_v1")
_WIDTHS = (10, 15, 20, 25, 30, 35, 40, 50, 60, 75, 100, 125)
# A member much faster than the bound is no answer to it.
_LEAST_SHARE = 0.6
CHOSEN = "chosen"


class Runs:
    """Results by name, kept as JSON lines.

    Args:
        path: the file; what it holds is not computed again.
        setting: of this benchmark; a file of another setting is refused.
    """

    def __init__(self, path: Path, setting: Mapping[str, Any]) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known: dict[str, Any] = dict(json.loads(line) for line in lines)
        if self.get("setting", lambda: dict(setting)) != json.loads(json.dumps(setting)):
            raise SystemExit(f"{path} was begun with another setting: give another --runs")

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """What is known under a name, computed and kept where it is not."""
        if name not in self._known:
            self._known[name] = compute()
            with self._path.open("a") as file:
                file.write(json.dumps([name, self._known[name]]) + "\n")
        return self._known[name]


def members(space: SearchSpace, count: int, seed: int) -> dict[str, Architecture]:
    """Random members of a space, by id."""
    generator = np.random.default_rng(seed)
    found: dict[str, Architecture] = {}
    choices = space.parameters()
    while len(found) < count:
        drawn = {name: values[int(generator.integers(len(values)))] for name, values in choices.items()}
        built = replace(space.build(drawn), classes=CLASSES)
        found[built.id] = built
    return found


def latencies_ms(networks: Mapping[str, Architecture], folder: Path, rounds: int) -> dict[str, float]:
    """Median of each network, end to end, all in the same rounds."""
    timed, _ = measure_deployments(networks, [Runtime()], folder, rounds, 0, ProfileProgress())
    return {each.network: each.p50_ms for each in timed}


def nearest(latencies: Mapping[str, float], family: str, bound_ms: float) -> str:
    """The width of a family whose latency is nearest to a bound."""
    widths = [name for name in latencies if name.startswith(f"{family}_") and name[-3:].isdecimal()]
    return min(widths, key=lambda name: abs(latencies[name] - bound_ms))


def within(latencies: Mapping[str, float], drawn: Sequence[str], bound_ms: float, count: int) -> list[str]:
    """The first members that are not slower than a bound, and not much faster."""
    return [each for each in drawn if _LEAST_SHARE * bound_ms <= latencies[each] <= bound_ms][:count]


def final_top1(architecture: Architecture, split: Split, recipe: FinalRecipe) -> tuple[float, float]:
    """Top-1 in percent on the test images, and seconds of training."""
    torch.manual_seed(recipe.seed)
    training = FinalTraining(Network(architecture), split, recipe, Processes(0, 1, torch.device("cpu")))
    began = time.monotonic()
    training.run()
    assert split.test is not None
    return evaluate(training.result, split.test, 500), time.monotonic() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.training_benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of Fashion-MNIST")
    parser.add_argument("--runs", type=Path, default=Path("training-benchmark.jsonl"))
    parser.add_argument("--limit", type=int, default=3200, help="training images")
    parser.add_argument("--drawn", type=int, default=500, help="members that are timed")
    parser.add_argument("--candidates", type=int, default=12, help="members that are trained briefly")
    parser.add_argument("--brief-epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    setting = {
        name: value for name, value in vars(options).items() if name not in ("images", "runs", "seeds")
    }
    runs = Runs(options.runs, setting)
    split = load(
        DatasetSettings("fashion_mnist", options.images, validation_share=0.1, limit=options.limit), SIDE
    )
    space = SearchSpace.from_yaml(CONFIG_FOLDER / "search_space" / "small_images.yaml")
    drawn = members(space, options.drawn, seed=0)
    scaled = [f"{family}_{width:03d}" for family in _SCALED for width in _WIDTHS]
    known = {name: reference(name, SIDE, CLASSES) for name in (TO_BEAT, *scaled)}
    folder = options.runs.absolute().parent
    timed = runs.get("latencies", lambda: latencies_ms({**known, **drawn}, folder, options.rounds))
    bound_ms = timed[TO_BEAT]
    candidates = within(timed, list(drawn), bound_ms, options.candidates)
    print(
        f"{TO_BEAT}: {bound_ms:.3f} ms; {len(candidates)} of {len(drawn)} members are candidates", flush=True
    )
    brief = Recipe(epochs=options.brief_epochs, batch_size=128, threads=1, device="cpu")
    judged: dict[str, float] = {}
    for name in candidates:
        judged[name] = runs.get(f"brief {name}", lambda: train(drawn[name], split, brief)[1])  # noqa: B023
        print(f"brief {name}: {judged[name]:.2f} % in {timed[name]:.3f} ms", flush=True)
    best = max(judged, key=lambda name: judged[name])
    finalists = {CHOSEN: drawn[best], TO_BEAT: known[TO_BEAT]}
    labels = {CHOSEN: best, TO_BEAT: TO_BEAT}
    for family in _SCALED:
        name = nearest(timed, family, bound_ms)
        finalists[name], labels[name] = known[name], name
    # Seed by seed: stopped early, every network has been trained equally often.
    found: dict[str, list[float]] = {name: [] for name in finalists}
    for seed in range(options.seeds):
        for name, architecture in finalists.items():
            recipe = FinalRecipe(
                epochs=options.epochs, warmup_epochs=0.5, ema=0.98, augment="none", seed=seed
            )
            top1, seconds = runs.get(
                f"final {labels[name]} {seed}",
                lambda: final_top1(architecture, split, recipe),  # noqa: B023
            )
            found[name].append(top1)
            print(f"seed {seed}, {name}: {top1:.2f} % in {seconds:.0f} s", flush=True)
    print(
        "\n| network | latency ms | test top-1 %, mean | standard deviation | seeds |\n|---|---|---|---|---|"
    )
    for name, values in found.items():
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        each = ", ".join(f"{value:.2f}" for value in values)
        title = f"chosen ({best})" if name == CHOSEN else name
        print(f"| {title} | {timed[labels[name]]:.3f} | {np.mean(values):.2f} | {spread:.2f} | {each} |")


if __name__ == "__main__":
    main()
