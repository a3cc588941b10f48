"""Recipes by which networks are trained: those that the accuracy predictor knows, and those it predicts for.

Recipes differ by more than architectures do: MobileNetV3-Large leads MobileNetV1 by 4.3 points in the
published rows of tensorflow/models, where V1 is training of 2017, by 2.0 to 2.3 where one author trained
both, and by 0.9 after 3,600 epochs. So a prediction is for one stated recipe.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

from search_spaces.errors import InputError

Target = Literal["scratch", "mobilenet_v2_v3", "long"]
TARGETS: tuple[str, ...] = get_args(Target)

# How far a recipe may lie from the others of its kind.
Kind = Literal["scratch", "plain", "other", "benchmark", "group"]
KINDS: tuple[Kind, ...] = get_args(Kind)

BENCHMARKS = ("accel_nasbench", "ofa_supernet")
OWN = "own"  # `own`, or `own:NAME`: recipes of one's own

# Training from scratch for about 240 to 450 epochs with a decaying learning rate and label smoothing, no
# teacher, no further images, as their authors describe it. Sorted so before anything was fitted.
_SCRATCH = frozenset(
    {
        "scratch",
        "mobilenet_v2_v3",
        "mnasnet",
        "imgclsmob",
        "paddle_v3 (360 epochs, cosine, label smoothing)",
        "paddle_v2 (240 epochs, cosine)",
        "paddle_lcnet (360 epochs, cosine, label smoothing)",
        "gluoncv",
        "timm_rmsp_in1k",
        "timm_lamb_in1k",
        "tf_efficientnet",
        "proxylessnas",
        "densenas",
    }
)
# From scratch by other schedules (90 to 300, or thousands of epochs; heavy augmentation), no teacher and no
# further images.
_PLAIN = frozenset(
    {
        "long",
        "mobilenet_v1",
        "mobilenet_v1_paper",
        "paddle_v1 (120 epochs, step)",
        "torchvision_v1",
        "torchvision_v2 (new recipe, reg-tuning)",
        "torchvision_mnasnet_trainer",
        "torchvision_mnasnet_pr6019 (new recipe)",
        "mmpretrain",
        "randl",
        "d-li14_v2 (150 epochs)",
        "d-li14_v2 (250 epochs)",
        "d-li14_v3 (150 epochs)",
        "timm_ra_in1k",
        "timm_ra_in1k tested above training size",
        "timm_ra2_in1k",
        "timm_ra2_in1k tested above training size",
        "timm_ft_in1k",
        "timm_efficientnet_pruned",
        "tf_efficientnet_autoaugment",
        "tf_efficientnet_advprop",
        "tinynet",
        "mcunet",
        "metapruning",
        "amc (pruned and fine-tuned)",
    }
)
# Recipes of one author that differ by resolution, by epochs or by where a network is tested: what is known
# of one tells of the others. By the beginning of their names.
_GROUPS = {
    "long": "timm_ra4",
    "timm_ra4": "timm_ra4",
    "timm_ra_": "timm_ra",
    "timm_ra2": "timm_ra2",
    "timm_ft": "timm_ft",
    "d-li14": "d-li14",
    "torchvision_v2": "torchvision_new",
    "torchvision_mnasnet_pr6019": "torchvision_new",
    "mobilenet_v1": "mobilenet_v1",
    "paddle_v1": "mobilenet_v1",
    "ofa (": "ofa",
}
# What a file of networks calls the recipe that is a target.
_NAMES = {"timm_ra4_e3600_r224_in1k": "long"}

DESCRIPTIONS = {
    "scratch": "from scratch, 240 to 450 epochs, cosine, label smoothing, no teacher",
    "mobilenet_v2_v3": "as MobileNetV2 and V3 in tensorflow/models (research/slim/nets)",
    "long": "as timm's ra4, 3,600 epochs with heavy augmentation; known from five networks only",
}


class RecipeError(InputError):
    """A recipe that the predictor does not know."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way of training.

    Attributes:
        name: e.g. ``scratch``.
        kind: ``scratch`` for recipes like the default target, ``plain`` for other training from scratch
            without a teacher or further images, ``benchmark`` for the cheap scores of a benchmark or a
            supernet, ``group`` for what several recipes have in common, ``other`` for everything else.
    """

    name: str
    kind: Kind

    @classmethod
    def named(cls, name: str) -> Recipe:
        """The recipe of that name; a name not known here is of kind ``other``."""
        if name in BENCHMARKS:
            return cls(name, "benchmark")
        return cls(name, "scratch" if name in _SCRATCH else "plain" if name in _PLAIN else "other")

    @property
    def group(self) -> Recipe | None:
        """The group of its author's recipes, None where it stands alone."""
        if self.kind in ("benchmark", "group"):
            return None
        found = next((group for start, group in _GROUPS.items() if self.name.startswith(start)), None)
        return Recipe(f"group:{found}", "group") if found else None

    def with_group(self) -> tuple[Recipe, ...]:
        """Itself, and its group where it has one: all whose effects its networks have."""
        group = self.group
        return (self, group) if group else (self,)


def with_groups(names: Iterable[str]) -> tuple[Recipe, ...]:
    """The recipes of those names and their groups, each once, in order."""
    return tuple(dict.fromkeys(each for name in names for each in Recipe.named(name).with_group()))


def recipe_name(name: str, separable: bool) -> str:
    """The predictor's name of a recipe of the published networks.

    Args:
        name: as the file of networks says.
        separable: whether the network has MobileNetV1's blocks: ``mobilenet`` stands for training of 2017
            there, and for that of V2 and V3 elsewhere.
    """
    if name == "mobilenet":
        return "mobilenet_v1" if separable else "mobilenet_v2_v3"
    return _NAMES.get(name, name)


def checked_recipe(name: str, known: Iterable[str]) -> str:
    """The name itself, if it is known or says that it is one's own.

    Raises:
        RecipeError: if it is neither, with the nearest known name.
    """
    names = [*known, OWN]
    if name in names or (name.startswith(f"{OWN}:") and name != f"{OWN}:"):
        return name
    raise RecipeError(f"{_unknown(name, names)} (a recipe of your own is `{OWN}` or `{OWN}:NAME`)")


def checked_target(name: str, known: Iterable[str]) -> str:
    """The name itself, if networks can be predicted for that recipe.

    Raises:
        RecipeError: if they cannot, with the nearest known name.
    """
    names = [each for each in known if each not in BENCHMARKS]
    if name not in names:
        raise RecipeError(f"accuracy.recipe: {_unknown(name, names)}")
    return name


def _unknown(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(TARGETS)}"
    return f"unknown recipe {name!r}; {hint}"
