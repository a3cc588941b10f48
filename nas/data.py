"""Image datasets: what candidates are trained on, and what they are judged by.

Every dataset is split into training and validation images; training never sees the latter. Small
datasets are held in memory as tensors, folders of images are read by worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

from search_spaces.errors import InputError

DatasetName = Literal["digits", "cifar10", "cifar100", "imagefolder", "imagenet", "synthetic"]
DATASETS: tuple[str, ...] = get_args(DatasetName)

Batch = tuple[Tensor, Tensor]

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
# Channel means and deviations of ImageNet, the convention of all torchvision weights.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class DatasetError(InputError):
    """A dataset that is not there or cannot be used."""


@dataclass(frozen=True, slots=True)
class DatasetSettings:
    """Which images.

    Attributes:
        name: one of :data:`DATASETS`.
        root: folder of the images; not needed for ``digits`` and ``synthetic``.
        validation_share: share of images kept from training where the dataset has no split of its own.
        limit: use at most this many training images, None for all.
        workers: processes that read image files.
        seed: of the split.
        download: let torchvision download CIFAR into ``root``.
    """

    name: DatasetName
    root: Path | None = None
    validation_share: float = 0.25
    limit: int | None = None
    workers: int = 2
    seed: int = 0
    download: bool = False

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise DatasetError(f"unknown dataset {self.name!r}; known are {', '.join(DATASETS)}")
        if not 0 < self.validation_share < 1:
            raise DatasetError(
                f"dataset.validation_share must lie between 0 and 1, not {self.validation_share}"
            )


class ImageSource(Protocol):
    """Images of one split."""

    def __len__(self) -> int:
        """Number of images."""

    def batches(self, batch_size: int, training: bool, seed: int) -> Iterator[Batch]:
        """One pass: ((N, 3, H, W) normalised floats, (N,) class numbers).

        Args:
            batch_size: images per batch.
            training: shuffle, augment and drop an incomplete last batch.
            seed: of order and augmentation.
        """


@dataclass(frozen=True, slots=True)
class Split:
    """A dataset, split once and for all.

    Attributes:
        train: images for training.
        validation: images training never sees.
        classes: names of the classes.
    """

    train: ImageSource
    validation: ImageSource
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorImages:
    """Images in memory.

    Attributes:
        images: (N, 3, H, W), normalised.
        labels: (N,) class numbers.
        flip: whether a mirrored image is still of its class (not so for digits).
        shift: training images are moved by up to this many pixels.
    """

    images: Tensor
    labels: Tensor
    flip: bool
    shift: int

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, training: bool, seed: int) -> Iterator[Batch]:
        """See :class:`ImageSource`."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator) if training else torch.arange(len(self))
        for start in range(0, len(self), batch_size):
            chosen = order[start : start + batch_size]
            if training and len(chosen) < batch_size and start:
                return
            images = self.images[chosen]
            yield (self._augment(images, generator) if training else images), self.labels[chosen]

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.flip and torch.rand(1, generator=generator).item() < 0.5:
            images = images.flip(3)
        if self.shift:
            side = images.shape[-1]
            padded = functional.pad(images, (self.shift,) * 4, mode="replicate")
            y, x = torch.randint(0, 2 * self.shift + 1, (2,), generator=generator).tolist()
            images = padded[:, :, y : y + side, x : x + side]
        return images


@dataclass(frozen=True, slots=True)
class FileImages:
    """Images in files, decoded and augmented by worker processes."""

    training_view: Dataset[tuple[Tensor, int]]
    plain_view: Dataset[tuple[Tensor, int]]
    workers: int

    def __len__(self) -> int:
        return len(self.plain_view)  # type: ignore[arg-type]

    def batches(self, batch_size: int, training: bool, seed: int) -> Iterator[Batch]:
        """See :class:`ImageSource`."""
        loader: DataLoader[Any] = DataLoader(
            self.training_view if training else self.plain_view,
            batch_size=batch_size,
            shuffle=training,
            drop_last=training and len(self) > batch_size,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),
        )
        yield from loader


def load(settings: DatasetSettings, resolution: int) -> Split:
    """Read a dataset at a resolution.

    Raises:
        DatasetError: if it is missing, empty, or too small to split; the message names the folder.
    """
    readers: dict[str, Callable[[DatasetSettings, int], Split]] = {
        "digits": _digits,
        "cifar10": _cifar,
        "cifar100": _cifar,
        "imagefolder": _image_folder,
        "imagenet": _imagenet,
        "synthetic": _synthetic,
    }
    return readers[settings.name](settings, resolution)


class Splits:
    """A dataset at every resolution that is asked for, read once for each by every process.

    A copy that another process gets holds the settings alone, and reads the images for itself.

    Args:
        settings: which images.
    """

    def __init__(self, settings: DatasetSettings) -> None:
        self._settings = settings
        self._read: dict[int, Split] = {}

    def __call__(self, resolution: int) -> Split:
        """The dataset at a resolution; see :func:`load`."""
        if resolution not in self._read:
            self._read[resolution] = load(self._settings, resolution)
        return self._read[resolution]

    def __reduce__(self) -> tuple[type[Splits], tuple[DatasetSettings]]:
        return Splits, (self._settings,)


def class_count(settings: DatasetSettings) -> int:
    """Number of classes, without reading any image.

    Raises:
        DatasetError: if the dataset's folder is missing or a class folder is empty.
    """
    known = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000, "synthetic": 4}
    if settings.name in known:
        return known[settings.name]
    return len(_class_folders(_training_folder(_root(settings))))


def _digits(settings: DatasetSettings, resolution: int) -> Split:
    """1,797 handwritten digits of 8x8 pixels that ship with scikit-learn (UCI, Alpaydin 1998)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float().div(16)[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(found.target).long()
    names = tuple(str(name) for name in found.target_names)
    return _tensor_split(settings, images, labels, names, resolution, flip=False)


def _synthetic(settings: DatasetSettings, resolution: int) -> Split:
    """Stripes of four directions under noise: for tests, learnt in seconds."""
    generator = torch.Generator().manual_seed(settings.seed)
    labels = torch.arange(256) % 4
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = torch.stack([x, y, (x + y) / 2**0.5, (x - y) / 2**0.5])
    phase = torch.rand(len(labels), generator=generator)[:, None, None] * 6.28
    stripes = torch.sin(waves[labels] * 1.3 + phase) * 0.5 + 0.5
    images = stripes + 0.2 * torch.randn(stripes.shape, generator=generator)
    return _tensor_split(
        settings,
        images[:, None].expand(-1, 3, -1, -1),
        labels,
        ("vertical", "horizontal", "rising", "falling"),
        resolution,
        flip=False,
    )


def _cifar(settings: DatasetSettings, resolution: int) -> Split:
    import torchvision

    root = _root(settings, must_exist=not settings.download)
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[settings.name]
    parts = []
    for train in (True, False):
        try:
            parts.append(kind(str(root), train=train, download=settings.download))
        except RuntimeError as error:
            raise DatasetError(
                f"{settings.name} is not in {root} ({error}); set dataset.root to the folder that holds it, "
                "or dataset.download=true"
            ) from None
    sources = []
    for part, limit in zip(parts, (settings.limit, None), strict=True):
        images = torch.from_numpy(part.data[:limit]).permute(0, 3, 1, 2).float().div(255)
        labels = torch.tensor(part.targets[:limit])
        sources.append(_tensor_images(images, labels, resolution, flip=True))
    return Split(sources[0], sources[1], tuple(parts[0].classes))


def _image_folder(settings: DatasetSettings, resolution: int) -> Split:
    """A folder of class folders, or of ``train`` and ``val`` folders of class folders."""
    root = _root(settings)
    training_folder = _training_folder(root)
    names = _class_folders(training_folder)
    validation_folder = next(
        (root / each for each in ("val", "valid", "validation", "test") if (root / each).is_dir()), None
    )
    if training_folder != root and validation_folder is not None:
        return _file_split(training_folder, validation_folder, names, resolution, settings)
    views = [_folder_view(training_folder, resolution, training) for training in (True, False)]
    targets = torch.tensor(views[0].targets)
    train, validation = _stratified(targets, settings)
    return Split(
        FileImages(Subset(views[0], train), Subset(views[1], train), settings.workers),
        FileImages(Subset(views[1], validation), Subset(views[1], validation), settings.workers),
        names,
    )


def _imagenet(settings: DatasetSettings, resolution: int) -> Split:
    """ImageNet-1k as 1,000 class folders below ``train`` and ``val``.

    The validation images come in one folder; ``torchvision.datasets.ImageNet`` sorts them by class.
    """
    root = _root(settings)
    folders = [root / "train", root / "val"]
    for folder in folders:
        if not folder.is_dir():
            raise DatasetError(
                f"there is no folder {folder}; ImageNet needs train/ and val/ with class folders"
            )
    names = _class_folders(folders[0])
    if len(names) != 1000:
        raise DatasetError(
            f"{folders[0]} has {len(names)} class folders, ImageNet has 1000; see dataset=imagefolder"
        )
    return _file_split(folders[0], folders[1], names, resolution, settings)


def _file_split(
    training: Path, validation: Path, names: tuple[str, ...], resolution: int, settings: DatasetSettings
) -> Split:
    if _class_folders(validation) != names:
        raise DatasetError(f"{validation} does not have the same class folders as {training}")
    augmented, plain = _folder_view(training, resolution, True), _folder_view(training, resolution, False)
    if settings.limit is not None:
        order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(settings.seed))
        chosen = order[: settings.limit].tolist()
        augmented, plain = Subset(augmented, chosen), Subset(plain, chosen)
    judged = _folder_view(validation, resolution, False)
    return Split(
        FileImages(augmented, plain, settings.workers), FileImages(judged, judged, settings.workers), names
    )


def _folder_view(folder: Path, resolution: int, training: bool) -> Any:
    import torchvision
    from torchvision.transforms import v2

    steps: list[Any]
    if training:
        steps = [v2.RandomResizedCrop(resolution, scale=(0.2, 1), antialias=True), v2.RandomHorizontalFlip()]
    else:
        # The usual ratio of resize to crop: 256 to 224.
        steps = [v2.Resize(round(resolution * 256 / 224), antialias=True), v2.CenterCrop(resolution)]
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _DEVIATION)]
    return torchvision.datasets.ImageFolder(str(folder), transform=v2.Compose(steps))


def _tensor_split(
    settings: DatasetSettings,
    images: Tensor,
    labels: Tensor,
    names: tuple[str, ...],
    resolution: int,
    flip: bool,
) -> Split:
    train, validation = _stratified(labels, settings)
    return Split(
        _tensor_images(images[train], labels[train], resolution, flip),
        _tensor_images(images[validation], labels[validation], resolution, flip),
        names,
    )


def _tensor_images(images: Tensor, labels: Tensor, resolution: int, flip: bool) -> TensorImages:
    if images.shape[-1] != resolution:
        images = functional.interpolate(
            images, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False
        )
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (_MEAN, _DEVIATION))
    return TensorImages((images - mean) / deviation, labels, flip, shift=max(1, resolution // 16))


def _stratified(labels: Tensor, settings: DatasetSettings) -> tuple[list[int], list[int]]:
    """Indices for training and validation, the same share of every class."""
    generator = np.random.default_rng(settings.seed)
    train: list[int] = []
    validation: list[int] = []
    for label in sorted(set(labels.tolist())):
        members = generator.permutation(np.flatnonzero(labels.numpy() == label)).tolist()
        kept = max(1, round(len(members) * settings.validation_share))
        if len(members) < 2:
            raise DatasetError(f"class number {label} has a single image; at least two are needed to split")
        validation += members[:kept]
        train += members[kept:]
    if settings.limit is not None:
        train = generator.permutation(train)[: settings.limit].tolist()
    return sorted(train), sorted(validation)


def _root(settings: DatasetSettings, must_exist: bool = True) -> Path:
    if settings.root is None:
        raise DatasetError(f"dataset {settings.name} needs a folder: set dataset.root=/path/to/images")
    if must_exist and not settings.root.is_dir():
        raise DatasetError(
            f"there is no folder {settings.root}; set dataset.root to where {settings.name} lies"
        )
    return settings.root


def _training_folder(root: Path) -> Path:
    return root / "train" if (root / "train").is_dir() else root


def _class_folders(root: Path) -> tuple[str, ...]:
    folders = sorted(each for each in root.iterdir() if each.is_dir()) if root.is_dir() else []
    if len(folders) < 2:
        raise DatasetError(f"{root} holds {len(folders)} class folder(s); at least two are needed")
    for folder in folders:
        if not any(each.suffix.lower() in _IMAGE_SUFFIXES for each in folder.rglob("*")):
            raise DatasetError(f"the class folder {folder} holds no image")
    return tuple(each.name for each in folders)
