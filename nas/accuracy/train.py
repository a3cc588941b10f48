"""``accuracy=train``: each candidate is really trained for a few epochs and judged on unseen images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.accuracy.source import Accuracy, AccuracyError, Judgement
from nas.data import ImageSource, Split, balanced_sample
from nas.measuring.models import OnnxRunner
from nas.network import Network
from nas.onnx_graph import onnx_model
from nas.quantize import quantize
from nas.training.inherit import inherit
from nas.training.pretrained import pretrained
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

# Training images that tell the ranges of an int8 network; more where there are more classes.
CALIBRATION_IMAGES = 100


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: peak of the one-cycle schedule (Smith and Topin 2018, arXiv 1708.07120).
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
    """

    load: Callable[[int], Split]
    recipe: Recipe
    int8: bool = False

    @property
    def expensive(self) -> bool:
        """See :class:`nas.accuracy.source.SearchSource`."""
        return True

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """Train a network from scratch and measure its top-1 on the validation images.

        Raises:
            AccuracyError: if the training diverges.
        """
        split = self.load(architecture.resolution)
        network = fit(architecture, split, self.recipe)
        judged = judge_quantized(network, split) if self.int8 else judge(network, split, self.recipe)
        return Accuracy.measured(judged)


def train(architecture: Architecture, split: Split, recipe: Recipe) -> tuple[Network, float]:
    """Train a network from scratch.

    Returns:
        The trained network and its top-1 accuracy in percent on the validation images.

    Raises:
        AccuracyError: if the training diverges, or the classes do not fit.
    """
    network = fit(architecture, split, recipe)
    return network, judge(network, split, recipe).top1


def fit(architecture: Architecture, split: Split, recipe: Recipe) -> Network:
    """Train a network, from scratch or from the weights that it can inherit.

    Raises:
        AccuracyError: if the training diverges, or the classes do not fit.
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
    network = network.to(memory_format=torch.channels_last).to(device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = recipe.norm_momentum
    steps = recipe.epochs * max(1, len(split.train) // recipe.batch_size)
    optimizer = torch.optim.AdamW(_parameter_groups(network, recipe.weight_decay), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps + 1)
    loss_of = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    mixed = device.type == "cuda"
    scaler = torch.amp.GradScaler(enabled=mixed)
    network.train()
    for epoch in range(recipe.epochs):
        for images, labels in split.train.batches(recipe.batch_size, True, recipe.seed * 10_007 + epoch):
            with torch.autocast(device.type, enabled=mixed):
                loss: Tensor = loss_of(network(_to(images, device)), labels.to(device, non_blocking=True))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
        if not math.isfinite(loss.item()):
            raise AccuracyError(
                f"the training of {architecture.id} diverged in epoch {epoch + 1}; "
                "lower accuracy.learning_rate"
            )
    return network


def judge(network: nn.Module, split: Split, recipe: Recipe) -> Judgement:
    """How well a network does on the validation images."""
    found = answers(network, split.validation, recipe.batch_size * 2)
    return Judgement.of(found.tolist(), split.validation.labels.tolist(), split.classes)


def evaluate(network: nn.Module, images: ImageSource, batch_size: int) -> float:
    """Top-1 accuracy in percent."""
    return 100 * (answers(network, images, batch_size) == images.labels).float().mean().item()


@torch.inference_mode()
def answers(network: nn.Module, images: ImageSource, batch_size: int) -> Tensor:
    """(N,) class numbers that a network gives images, in their order."""
    device = next(network.parameters()).device
    network.eval()
    batches = images.batches(batch_size, False, 0)
    return torch.cat([network(_to(batch, device)).argmax(dim=1).cpu() for batch, _ in batches])


def calibration_images(split: Split) -> list[NDArray[np.float32]]:
    """Training images that tell the ranges of an int8 network, all classes alike: each (1, 3, H, W)."""
    return [image[None].numpy() for image in balanced_sample(split.train, CALIBRATION_IMAGES)]


def quantized_top1(network: Network, split: Split) -> float:
    """Top-1 in percent of the int8 network that ``nas.export`` would write, on the validation images."""
    return judge_quantized(network, split).top1


def judge_quantized(network: Network, split: Split) -> Judgement:
    """How well the int8 network that ``nas.export`` would write does on the validation images."""
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


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    # Norms and biases are not decayed, as in the MobileNet papers' training code.
    decayed = [each for each in network.parameters() if each.ndim > 1]
    plain = [each for each in network.parameters() if each.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
