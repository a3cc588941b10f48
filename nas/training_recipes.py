"""Recipes of training, each declared once: commands' settings extend them, trainings take them.

Importing this imports no library of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search_spaces.errors import InputError

OPTIMIZERS = ("sgd", "rmsprop", "adamw")
AUGMENTS = ("none", "trivial", "rand")
PRECISIONS = ("fp32", "bf16", "fp16")
_NOT_NEGATIVE = ("warmup_epochs", "weight_decay", "gradient_norm")


@dataclass
class FinalRecipe:
    """The recipe that the final network is trained by.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, of all processes together.
        optimizer: ``sgd`` (Nesterov), ``rmsprop`` (as the MobileNet papers) or ``adamw``.
        learning_rate: peak of a cosine schedule.
        warmup_epochs: in which the learning rate rises from zero.
        momentum: of sgd and rmsprop.
        weight_decay: on weights alone, not on norms and biases.
        label_smoothing: share of the target spread over all classes.
        augment: ``trivial`` (TrivialAugment, 2103.10158), ``rand`` (RandAugment, 1909.13719) or ``none``,
            besides what ``dataset.augment`` does.
        mixup: alpha of mixup (1710.09412); 0: never.
        cutmix: alpha of cutmix (1905.04899); 0: never. With both, each batch draws one.
        erasing: probability that a rectangle of an image is erased (1708.04896).
        dropout: before the classifier.
        drop_path: probability that the last residual block is skipped, earlier ones less (1603.09382).
        ema: decay of the weights' moving average, which is what is kept; 0: the weights themselves.
        distillation: weight of the teacher's answers in the loss, 0 to 1 (1503.02531).
        norm_momentum: of the running statistics, PyTorch's convention; the papers' 0.01 is for hundreds of
            thousands of steps.
        gradient_norm: gradients are scaled down to this norm; 0: never.
        precision: ``fp32``, or mixed ``bf16``, ``fp16``.
        seed: of initialisation, order, augmentation and dropout.
    """

    epochs: int = 60
    batch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 0.003
    warmup_epochs: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    augment: str = "trivial"
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    dropout: float = 0.2
    drop_path: float = 0.0
    ema: float = 0.998
    distillation: float = 0.0
    norm_momentum: float = 0.1
    gradient_norm: float = 1.0
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 2, "seed": 0}
        _check_numbers("train", self, least, (*_NOT_NEGATIVE, "mixup", "cutmix"))
        for name in (
            "momentum",
            "label_smoothing",
            "erasing",
            "dropout",
            "drop_path",
            "ema",
            "norm_momentum",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"train.{name} must be from 0 to below 1, not {getattr(self, name):g}")
        if not 0 <= self.distillation <= 1:
            raise InputError(f"train.distillation must be from 0 to 1, not {self.distillation:g}")
        for name, known in (("optimizer", OPTIMIZERS), ("augment", AUGMENTS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InputError(f"train.{name} must be {', '.join(known)}, not {getattr(self, name)}")


@dataclass
class SupernetRecipe:
    """The recipe that a supernet is trained by.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, of all processes together.
        learning_rate: peak of a cosine schedule.
        warmup_epochs: in which the learning rate rises from zero.
        weight_decay: of AdamW, on weights alone.
        label_smoothing: share of the target spread over all classes, for the largest member.
        random_members: trained in each step besides the largest and the smallest.
        distillation: whether the others learn from the largest, rather than from the labels.
        gradient_norm: gradients are scaled down to this norm; 0: never.
        precision: ``fp32``, or ``bf16`` for mixed precision.
        seed: of initialisation, order, augmentation and members.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.003
    warmup_epochs: float = 1.0
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    random_members: int = 2
    distillation: bool = True
    gradient_norm: float = 1.0
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 2, "random_members": 0, "seed": 0}
        _check_numbers("supernet", self, least, _NOT_NEGATIVE)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"supernet.label_smoothing must be from 0 to 1, not {self.label_smoothing:g}")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"supernet.precision must be fp32 or bf16, not {self.precision}")


def _check_numbers(
    section: str,
    recipe: FinalRecipe | SupernetRecipe,
    least: Mapping[str, int],
    not_negative: Sequence[str],
) -> None:
    """Refuse numbers of a recipe that no training can be done with, each named with its section."""
    for name, lowest in least.items():
        if getattr(recipe, name) < lowest:
            raise InputError(f"{section}.{name} must be at least {lowest}, not {getattr(recipe, name)}")
    for name in not_negative:
        if not 0 <= getattr(recipe, name) < math.inf:
            raise InputError(f"{section}.{name} must be 0 or positive, not {getattr(recipe, name):g}")
    if not 0 < recipe.learning_rate < math.inf:
        raise InputError(f"{section}.learning_rate must be positive, not {recipe.learning_rate:g}")
