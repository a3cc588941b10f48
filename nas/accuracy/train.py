"""``accuracy=train``: each candidate is really trained for a few epochs and judged on unseen images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.accuracy.source import Accuracy, AccuracyError, GoesOn, Judgement
from nas.data import ImageSource, Split, balanced_sample
from nas.graphs.onnx import onnx_model
from nas.graphs.quantize import quantize
from nas.measuring.models import OnnxRunner
from nas.network import Network
from nas.training.final import Checkpoints, FinalTraining
from nas.training.inherit import inherit
from nas.training.pretrained import pretrained
from nas.training.processes import Processes
from nas.training.steps import TrainingError
from nas.training_recipes import FinalRecipe
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

# Share of a brief training in which the learning rate rises.
_WARMUP = 0.3
# What trained for less than this is sooner trained again than written.
_EPOCH_INTERVAL_S = 20.0
# Trainings are looked at so often before their end, at most.
_RUNGS = 3
# Training images that tell the ranges of an int8 network; more where there are more classes.
CALIBRATION_IMAGES = 100


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings by which a candidate is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: peak of a cosine schedule; it rises for a third of the time.
        weight_decay: of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), on weights alone.
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2016).
        norm_momentum: of the running statistics; the papers' 0.01 is for hundreds of thousands of steps.
        device: ``auto`` takes CUDA where there is one.
        threads: CPU threads of torch while training.
        seed: of initialisation, order and augmentation.
        init: whose weights to begin with, see :func:`nas.training.pretrained.pretrained`; ``scratch``: none.
    """

    epochs: int = 6
    batch_size: int = 64
    learning_rate: float = 0.003
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    norm_momentum: float = 0.1
    device: str = "auto"
    threads: int = 2
    seed: int = 0
    init: str = "scratch"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"accuracy.{name} must be at least 1, not {getattr(self, name)}")
        if self.batch_size < 2:
            raise InputError(
                "accuracy.batch_size must be at least 2: batch normalisation needs several images"
            )
        if not self.learning_rate > 0:
            raise InputError(f"accuracy.learning_rate must be positive, not {self.learning_rate}")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError("accuracy.device=cuda, but torch sees no CUDA device; use accuracy.device=cpu")

    def torch_device(self) -> torch.device:
        """The device training runs on."""
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(name)


@dataclass(frozen=True, slots=True)
class TrainedAccuracy:
    """Trains networks on one dataset, all with one recipe.

    Attributes:
        load: gives the dataset at a resolution.
        recipe: how to train.
        int8: whether networks will run quantised: then the quantised network is judged.
        halving: of the networks that come to a rung, so many times fewer go on; 0: all do.
        checkpoints: folder where trainings are kept while they last, so that none begins anew.
    """

    load: Callable[[int], Split]
    recipe: Recipe
    int8: bool = False
    halving: int = 0
    checkpoints: Path | None = None

    def __post_init__(self) -> None:
        if self.halving < 0 or self.halving == 1:
            raise InputError(f"accuracy.halving must be 0, or at least 2, not {self.halving}")

    @property
    def expensive(self) -> bool:
        """See :class:`nas.accuracy.source.SearchSource`."""
        return True

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs after which a training is looked at and may be stopped."""
        if not self.halving:
            return ()
        parts = (round(self.recipe.epochs / self.halving**power) for power in range(_RUNGS, 0, -1))
        return tuple(dict.fromkeys(each for each in parts if 1 <= each < self.recipe.epochs))

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """Train a network and measure its top-1 on the validation images.

        Raises:
            AccuracyError: if the training diverges.
        """
        return self.staged(architecture, None)

    def staged(self, architecture: Architecture, goes_on: GoesOn | None) -> Accuracy:
        """Train a network, asking at each rung whether it is worth going on; epochs done are kept.

        Raises:
            AccuracyError: if the training diverges.
        """
        split = self.load(architecture.resolution)
        path = self.checkpoints / f"{architecture.id}.safetensors" if self.checkpoints else None
        training = training_of(architecture, split, self.recipe, path)
        curve: list[tuple[int, float]] = []
        for epoch in (*self.rungs, self.recipe.epochs):
            _run(training, epoch)
            judged = self._judged(training.result, split)
            curve.append((epoch, judged.top1))
            if epoch < self.recipe.epochs and goes_on is not None and not goes_on(epoch, judged.top1):
                break
        if path is not None:
            path.unlink(missing_ok=True)
        return Accuracy.measured(judged, tuple(curve), stopped=epoch < self.recipe.epochs)

    def _judged(self, network: Network, split: Split) -> Judgement:
        return judge_quantized(network, split) if self.int8 else judge(network, split, self.recipe)


def fit(architecture: Architecture, split: Split, recipe: Recipe) -> Network:
    """Train a network, from scratch or from the weights that it can inherit.

    Args:
        architecture: the network.
        split: images to train on.
        recipe: how it is trained.

    Raises:
        AccuracyError: if the training diverges, or the classes do not fit.
        WeightsError: if the weights to begin with cannot be had.
    """
    training = training_of(architecture, split, recipe)
    _run(training, recipe.epochs)
    return training.result


def training_of(
    architecture: Architecture, split: Split, recipe: Recipe, checkpoint: Path | None = None
) -> FinalTraining:
    """A brief training: the final one's loop without what pays in long trainings alone.

    Args:
        architecture: the network.
        split: images to train on.
        recipe: how it is trained.
        checkpoint: where it goes on after an interruption; nowhere where None.

    Raises:
        AccuracyError: if the classes do not fit.
        WeightsError: if the weights to begin with cannot be had.
    """
    if architecture.classes != len(split.classes):
        raise AccuracyError(
            f"the network has {architecture.classes} classes, the dataset {len(split.classes)}"
        )
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    device = recipe.torch_device()
    network = Network(architecture)
    if recipe.init != "scratch":
        inherit(network, pretrained(recipe.init), recipe.init)
    brief = FinalRecipe(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup_epochs=_WARMUP * recipe.epochs,
        weight_decay=recipe.weight_decay,
        label_smoothing=recipe.label_smoothing,
        augment="none",
        ema=0.0,
        norm_momentum=recipe.norm_momentum,
        gradient_norm=0.0,
        precision="fp16" if device.type == "cuda" else "fp32",
        seed=recipe.seed,
    )
    try:
        kept = Checkpoints(checkpoint, epoch_interval_s=_EPOCH_INTERVAL_S) if checkpoint else None
        return FinalTraining(network, split, brief, Processes(0, 1, device), kept)
    except TrainingError:
        # A checkpoint of other settings, or cut short.
        assert checkpoint is not None
        checkpoint.unlink()
        return training_of(architecture, split, recipe, checkpoint)


def _run(training: FinalTraining, epochs: int) -> None:
    try:
        training.run(epochs=epochs)
    except TrainingError as error:
        text = str(error).replace("train.", "accuracy.")
        raise AccuracyError(f"the training of {training.network.architecture.id} failed: {text}") from None


def judge(network: nn.Module, split: Split, recipe: Recipe) -> Judgement:
    """The accuracy of a network on the validation images.

    Args:
        network: the network.
        split: whose validation images it is shown.
        recipe: gives the size of a batch.
    """
    return judge_on(network, split.validation, split.classes, recipe.batch_size * 2)


def judge_on(network: nn.Module, images: ImageSource, classes: Sequence[str], batch_size: int) -> Judgement:
    """The accuracy of a network on any images.

    Args:
        network: the network.
        images: that it is shown.
        classes: their names.
        batch_size: images at once.
    """
    found = answers(network, images, batch_size)
    return Judgement.of(found.tolist(), images.labels.tolist(), classes)


@torch.inference_mode()
def answers(network: nn.Module, images: ImageSource, batch_size: int) -> Tensor:
    """(N,) class numbers that a network gives images, in their order.

    Args:
        network: the network.
        images: that it is shown.
        batch_size: images at once.
    """
    device = next(network.parameters()).device
    network.eval()
    batches = images.batches(batch_size, False, 0)
    return torch.cat([network(_to(batch, device)).argmax(dim=1).cpu() for batch, _ in batches])


def calibration_images(split: Split) -> list[NDArray[np.float32]]:
    """Training images that tell the ranges of an int8 network, all classes alike: each (1, 3, H, W)."""
    return [image[None].numpy() for image in balanced_sample(split.train, CALIBRATION_IMAGES)]


def judge_quantized(network: Network, split: Split) -> Judgement:
    """The accuracy on the validation images of the int8 network that ``nas.export`` would write."""
    side = network.architecture.resolution
    model = onnx_model(network.eval().cpu(), (1, 3, side, side))
    runner = OnnxRunner(quantize(model, calibration_images(split)).SerializeToString(), 1)
    found = []
    for batch, _ in split.validation.batches(CALIBRATION_IMAGES, False, 0):
        for image in batch:
            runner.take(image[None].contiguous().numpy())
            found.append(int(runner.output().argmax()))
    return Judgement.of(found, split.validation.labels.tolist(), split.classes)


def _to(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device, non_blocking=True, memory_format=torch.channels_last)
