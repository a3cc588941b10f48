"""Image datasets: what candidates are trained on, and what they are judged by.

Every dataset is split into training and validation images; training never sees the latter. Small
datasets are held in memory as tensors, folders of images are read by worker processes.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler, Sampler, WeightedRandomSampler

from nas.pictures.augment import Augment
from nas.pictures.decode import PictureError
from nas.pictures.folders import (
    DatasetError,
    PictureFolder,
    Pictures,
    check_pictures,
    listed,
    read_folder,
    read_parts,
)
from nas.pictures.preprocessing import DEVIATION, MEAN, Preprocessing
from nas.pictures.recognition import Recognition
from nas.pictures.views import PictureView, Plain
from search_spaces.gate import Gate, made

Batch = tuple[Tensor, Tensor]


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
        augment: what is done to training pictures; None: what is usual for the dataset.
        balanced: training shows all classes equally often, rare ones again and again.
        skip_unreadable: leave out pictures that cannot be read, instead of stopping at the first.
    """

    name: str
    root: Path | None = None
    validation_share: float = 0.25
    limit: int | None = None
    workers: int = 2
    seed: int = 0
    download: bool = False
    augment: Augment | None = None
    balanced: bool = False
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise DatasetError(f"unknown dataset {self.name!r}; known are {', '.join(DATASETS)}")
        if not 0 < self.validation_share < 1:
            raise DatasetError(
                f"dataset.validation_share must lie between 0 and 1, not {self.validation_share}"
            )
        if self.limit is not None and self.limit < 1:
            raise DatasetError(f"dataset.limit must be at least 1, or null for all, not {self.limit}")
        if self.workers < 0:
            raise DatasetError(f"dataset.workers must be at least 0, not {self.workers}")
        if (
            self.augment
            and not DATASETS[self.name].files
            and (self.augment.crop is not None or self.augment.colour)
        ):
            raise DatasetError(
                f"dataset.augment.crop and colour are for files of pictures; {self.name} has flip and shift"
            )

    def to_dict(self) -> dict[str, object]:
        """Plain values; the folder is absolute, so that they mean the same elsewhere on this machine."""
        return {**asdict(self), "root": str(self.root.absolute()) if self.root else None}

    @classmethod
    def from_dict(cls, data: object, gate: Gate) -> DatasetSettings:
        """An object made again of what :meth:`to_dict` gave.

        Raises:
            InputError: of the gate's kind, if it is something else.
        """
        if isinstance(data, dict):
            data = {"skip_unreadable": False, **data}  # of older files
        fields = gate.fields("dataset", data, [each.name for each in dataclass_fields(cls)])
        augment = fields["augment"]
        with gate.reading():
            return cls(
                name=gate.choice("dataset", fields["name"], tuple(DATASETS)),
                root=None if fields["root"] is None else Path(gate.string("root", fields["root"], 4096)),
                validation_share=gate.number("validation_share", fields["validation_share"], 0, 1),
                limit=None if fields["limit"] is None else gate.integer("limit", fields["limit"]),
                workers=gate.integer("workers", fields["workers"], 0, 1024),
                seed=gate.integer("seed", fields["seed"]),
                download=False,
                augment=None if augment is None else made(Augment, gate.mapping(augment, "augment")),
                balanced=fields["balanced"] is True,
                skip_unreadable=fields["skip_unreadable"] is True,
            )


class ImageSource(Protocol):
    """Images of one split."""

    @property
    def labels(self) -> Tensor:
        """(N,) class numbers."""

    def __len__(self) -> int:
        """Number of images."""

    def at(self, indices: Sequence[int]) -> Tensor:
        """Some images as they are judged: (N, 3, H, W) normalised floats."""

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
        validation: images training never sees, by which candidates are ranked.
        classes: names of the classes, in the order of class numbers.
        preprocessing: how validation images were made of pictures.
        test: the dataset's own test images where it has some: no candidate was ranked by them.
    """

    train: ImageSource
    validation: ImageSource
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    test: ImageSource | None = None

    @property
    def recognition(self) -> Recognition:
        """The class names and preprocessing that go with a network trained on it."""
        return Recognition(self.classes, self.preprocessing)


@dataclass(frozen=True, slots=True)
class TensorImages:
    """Images in memory.

    Attributes:
        images: (N, 3, H, W), normalised.
        labels: (N,) class numbers.
        augment: what training does to them.
        balanced: training shows all classes equally often.
    """

    images: Tensor
    labels: Tensor
    augment: Augment
    balanced: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: Sequence[int]) -> Tensor:
        """See :class:`ImageSource`."""
        return self.images[torch.tensor(indices)]

    def batches(self, batch_size: int, training: bool, seed: int) -> Iterator[Batch]:
        """See :class:`ImageSource`."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.arange(len(self))
        if training:
            order = torch.tensor(list(_training_order(self.labels, self.balanced, generator)))
        for start in range(0, len(self), batch_size):
            chosen = order[start : start + batch_size]
            if training and len(chosen) < batch_size and start:
                return
            images = self.images[chosen]
            yield (self.augment.batch(images, generator) if training else images), self.labels[chosen]


@dataclass(frozen=True, slots=True)
class FileImages:
    """Images in files, decoded and augmented by worker processes."""

    training_view: PictureView
    plain_view: PictureView
    workers: int
    balanced: bool = False

    @property
    def labels(self) -> Tensor:
        """See :class:`ImageSource`."""
        return torch.tensor(self.plain_view.pictures.labels)

    def __len__(self) -> int:
        return len(self.plain_view)

    def at(self, indices: Sequence[int]) -> Tensor:
        """See :class:`ImageSource`."""
        return torch.stack([self.plain_view[index][0] for index in indices])

    def batches(self, batch_size: int, training: bool, seed: int) -> Iterator[Batch]:
        """See :class:`ImageSource`."""
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(
            self.training_view if training else self.plain_view,
            batch_size=batch_size,
            sampler=_training_order(self.labels, self.balanced, generator) if training else None,
            drop_last=training and len(self) > batch_size,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            generator=generator,
        )
        yield from loader


def _training_order(labels: Tensor, balanced: bool, generator: torch.Generator) -> Sampler[int]:
    """As many indices as there are images: each once, or all classes equally often."""
    if not balanced:
        return RandomSampler(labels, generator=generator)
    weights = 1 / torch.bincount(labels).clamp(min=1)[labels]
    return WeightedRandomSampler(weights.tolist(), len(labels), generator=generator)


def load(settings: DatasetSettings, resolution: int) -> Split:
    """Read a dataset at a resolution.

    Raises:
        DatasetError: if it is missing, empty, or too small to split; the message names the folder.
    """
    return DATASETS[settings.name].read(settings, resolution)


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


def balanced_sample(images: ImageSource, count: int, seed: int = 0) -> Tensor:
    """Images of all classes in equal numbers, as far as there are enough: (N, 3, H, W).

    Args:
        images: where they come from.
        count: how many; one of each class where there are more classes.
        seed: of the choice.
    """
    generator = np.random.default_rng(seed)
    labels = images.labels.numpy()
    shuffled = generator.permutation(len(labels))
    rank: dict[int, int] = {}
    places = []
    for index in shuffled.tolist():
        label = int(labels[index])
        places.append((rank.setdefault(label, 0), index))
        rank[label] += 1
    # The first of every class, then the second of every class, and so on; sorting keeps the shuffled order.
    places.sort(key=lambda place: place[0])
    return images.at([index for _, index in places[: max(count, len(rank))]])


def class_count(settings: DatasetSettings) -> int:
    """Number of classes, without reading any image.

    Raises:
        DatasetError: if the dataset's folder is missing or a class folder is empty.
    """
    kind = DATASETS[settings.name]
    return kind.classes or len(read_folder(_root(settings), settings.skip_unreadable).classes)


def check(settings: DatasetSettings) -> str:
    """Look at the whole dataset before anything is measured or trained.

    Returns:
        One line: classes, pictures in each, what was left out.

    Raises:
        DatasetError: if it cannot be used.
        PictureError: if a picture of ``imagefolder`` cannot be read.
    """
    if DATASETS[settings.name].classes:
        return f"{settings.name}: {class_count(settings)} classes"
    found = read_folder(_root(settings), settings.skip_unreadable)
    if not settings.skip_unreadable:
        try:
            check_pictures(found.files)
        except PictureError as error:
            raise PictureError(f"{error}; dataset.skip_unreadable=true leaves such pictures out") from None
    mirrored = "; mirrored in training: dataset.augment.flip=false where left is not right"
    return f"{settings.root}: {found.summary()}" + (mirrored if _augment(settings).flip else "")


def _digits(settings: DatasetSettings, resolution: int) -> Split:
    """1,797 handwritten digits of 8x8 pixels that ship with scikit-learn (UCI, Alpaydin 1998)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float().div(16)[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(found.target).long()
    names = tuple(str(name) for name in found.target_names)
    return _tensor_split(settings, images, labels, names, resolution)


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
    )


def _cifar(settings: DatasetSettings, resolution: int) -> Split:
    import torchvision

    root = _root(settings, must_exist=not settings.download)
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[settings.name]
    for path in root.glob("cifar-*/*"):
        if path.is_file() and path.stat().st_size > _MOST_CIFAR_BYTES:
            raise DatasetError(f"{path} is no file of {settings.name}: it has {path.stat().st_size:,} bytes")
    parts = []
    for train in (True, False):
        try:
            parts.append(kind(str(root), train=train, download=settings.download))
        except (RuntimeError, OSError) as error:  # not there, another file, or no network
            raise DatasetError(
                f"{settings.name} is not in {root} ({error}); set dataset.root to the folder that holds it, "
                "or dataset.download=true"
            ) from None
    (images, labels), test = (
        (torch.from_numpy(part.data).permute(0, 3, 1, 2).float().div(255), torch.tensor(part.targets))
        for part in parts
    )
    return _tensor_split(settings, images, labels, tuple(parts[0].classes), resolution, test)


_FASHION = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# Of 70,000 pictures the larger file has 47,040,016.
_MOST_IDX_BYTES = 64 * 2**20
# Of CIFAR's pickled files, which torchvision reads only if their digests are right, the largest has 155 MB.
_MOST_CIFAR_BYTES = 400 * 2**20


def _fashion_mnist(settings: DatasetSettings, resolution: int) -> Split:
    """70,000 pictures of clothes, 28x28 grey pixels (Xiao et al. 2017, 1708.07747), files as MNIST's."""
    root = _root(settings)
    parts = []
    for part in ("train", "t10k"):
        images = _idx(root, f"{part}-images-idx3-ubyte", 3)
        labels = _idx(root, f"{part}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or labels.max() >= len(_FASHION):
            raise DatasetError(f"{root}: {len(images)} images of {part} do not fit {len(labels)} labels")
        pixels = torch.from_numpy(images).float().div(255)[:, None].expand(-1, 3, -1, -1)
        parts.append((pixels, torch.from_numpy(labels).long()))
    return _tensor_split(settings, *parts[0], _FASHION, resolution, parts[1])


def _idx(root: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    """An array in MNIST's IDX format, compressed or not, where torchvision or Debian put it.

    Raises:
        DatasetError: if it is missing or damaged.
    """
    places = (root, root / "FashionMNIST" / "raw")
    found = [path for place in places for path in (place / name, place / f"{name}.gz") if path.is_file()]
    if not found:
        raise DatasetError(
            f"fashion_mnist is not in {root}: there is no {name} or {name}.gz; set dataset.root to the "
            "folder that holds it (Debian: dataset-fashion-mnist, /usr/share/datasets/fashion-mnist)"
        )
    try:
        with (gzip.open if found[0].suffix == ".gz" else open)(found[0], "rb") as file:
            content = file.read(_MOST_IDX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"cannot read {found[0]}: {error}") from None
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist()) if len(content) >= start else ()
    if content[:4] != bytes((0, 0, 8, dimensions)) or not 0 < math.prod(shape) == len(content) - start:
        raise DatasetError(f"{found[0]} is damaged, or no IDX file of {dimensions} dimensions")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _image_folder(settings: DatasetSettings, resolution: int) -> Split:
    """A folder of class folders, or of ``train`` and ``val`` folders of class folders."""
    found = read_folder(_root(settings), settings.skip_unreadable)
    if found.validation is None:
        labels = torch.tensor(found.train.labels)
        train, validation = _stratified(labels, found.classes, settings, found.copies)
        return _file_split(found, found.train.at(train), found.train.at(validation), resolution, settings)
    return _file_split(found, _limited(found, settings), found.validation, resolution, settings)


def _imagenet(settings: DatasetSettings, resolution: int) -> Split:
    """ImageNet-1k as 1,000 class folders below ``train`` and ``val``.

    The validation images come in one folder; ``torchvision.datasets.ImageNet`` sorts them by class.
    """
    root = _root(settings)
    for folder in (root / "train", root / "val"):
        if not folder.is_dir():
            raise DatasetError(
                f"there is no folder {folder}; ImageNet needs train/ and val/ with class folders"
            )
    found = read_parts(root)
    if len(found.classes) != 1000:
        raise DatasetError(
            f"{root}/train has {len(found.classes)} class folders, ImageNet has 1000; see dataset=imagefolder"
        )
    assert found.validation is not None
    return _file_split(found, _limited(found, settings), found.validation, resolution, settings)


def _limited(found: PictureFolder, settings: DatasetSettings) -> Pictures:
    generator = np.random.default_rng(settings.seed)
    chosen = _limit(list(range(len(found.train))), found.train.labels, found.classes, settings, generator)
    return found.train.at(sorted(chosen))


def _file_split(
    found: PictureFolder, train: Pictures, judged: Pictures, resolution: int, settings: DatasetSettings
) -> Split:
    preprocessing = Preprocessing.of_photos(resolution)
    plain = Plain(preprocessing)
    validation = PictureView(judged, plain)
    test = PictureView(found.test, plain) if found.test else None
    return Split(
        FileImages(
            PictureView(train, _augment(settings).of_files(preprocessing)),
            PictureView(train, plain),
            settings.workers,
            settings.balanced,
        ),
        FileImages(validation, validation, settings.workers),
        found.classes,
        preprocessing,
        FileImages(test, test, settings.workers) if test else None,
    )


def _tensor_split(
    settings: DatasetSettings,
    images: Tensor,
    labels: Tensor,
    names: tuple[str, ...],
    resolution: int,
    test: tuple[Tensor, Tensor] | None = None,
) -> Split:
    # Also where a dataset has test images of its own: what ranks candidates cannot judge the winner.
    train, validation = _stratified(labels, names, settings, {})
    return Split(
        _tensor_images(images[train], labels[train], resolution, settings),
        _tensor_images(images[validation], labels[validation], resolution, settings),
        names,
        Preprocessing(resolution, resolution),
        None if test is None else _tensor_images(*test, resolution, settings),
    )


def _augment(settings: DatasetSettings) -> Augment:
    return settings.augment or DATASETS[settings.name].augment


def _tensor_images(
    images: Tensor, labels: Tensor, resolution: int, settings: DatasetSettings
) -> TensorImages:
    if images.shape[-1] != resolution:
        images = functional.interpolate(
            images, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False
        )
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
    return TensorImages((images - mean) / deviation, labels, _augment(settings), settings.balanced)


def _stratified(
    labels: Tensor, names: Sequence[str], settings: DatasetSettings, copies: Mapping[int, int]
) -> tuple[list[int], list[int]]:
    """Indices for training and validation, the same share of every class; copies go with their originals."""
    generator = np.random.default_rng(settings.seed)
    train: list[int] = []
    validation: list[int] = []
    for label in sorted(set(labels.tolist())):
        members = [each for each in np.flatnonzero(labels.numpy() == label).tolist() if each not in copies]
        members = generator.permutation(members).tolist()
        kept = max(1, round(len(members) * settings.validation_share))
        if len(members) < 2:
            raise DatasetError(
                f"the class {names[label]} has a single image; at least two different ones are needed"
            )
        if kept == len(members):
            raise DatasetError(
                f"dataset.validation_share={settings.validation_share:g} leaves no image to train on of the "
                f"class {names[label]}, which has {len(members)}"
            )
        validation += members[:kept]
        train += members[kept:]
    train = _limit(train, labels.tolist(), names, settings, generator)
    for side in (train, validation):
        originals = set(side)
        side += [copy for copy, original in copies.items() if original in originals]
    return sorted(train), sorted(validation)


def _limit(
    train: list[int],
    labels: Sequence[int],
    names: Sequence[str],
    settings: DatasetSettings,
    generator: np.random.Generator,
) -> list[int]:
    """At most ``dataset.limit`` of the training images, some of every class."""
    if settings.limit is None:
        return train
    shuffled: list[int] = generator.permutation(train).tolist()
    first = {labels[index]: index for index in reversed(shuffled)}
    # Of a known dataset a few images may be wanted to try something out.
    if settings.limit < len(first) and settings.name != "imagenet":
        raise DatasetError(
            f"dataset.limit={settings.limit} leaves classes without a training image: there are {len(first)} "
            f"classes ({listed(names)})"
        )
    ones = set(first.values())
    return [*ones, *(index for index in shuffled if index not in ones)][: settings.limit]


def _root(settings: DatasetSettings, must_exist: bool = True) -> Path:
    if settings.root is None:
        raise DatasetError(f"dataset {settings.name} needs a folder: set dataset.root=/path/to/images")
    if must_exist and not settings.root.is_dir():
        raise DatasetError(
            f"there is no folder {settings.root}; set dataset.root to where {settings.name} lies"
        )
    return settings.root


@dataclass(frozen=True, slots=True)
class Dataset:
    """A kind of images.

    Attributes:
        read: reads it at a resolution.
        augment: what is usual for it: photos may be mirrored, digits may not.
        classes: how many it has; None where its folders tell.
        files: whether it is files of pictures of any size, which may be cut out and coloured.
    """

    read: Callable[[DatasetSettings, int], Split]
    augment: Augment
    classes: int | None
    files: bool = False


# A dataset is a line here and a YAML in conf/dataset.
DATASETS: dict[str, Dataset] = {
    "digits": Dataset(_digits, Augment(shift=1 / 16), 10),
    "cifar10": Dataset(_cifar, Augment(flip=True, shift=1 / 16), 10),
    "cifar100": Dataset(_cifar, Augment(flip=True, shift=1 / 16), 100),
    "fashion_mnist": Dataset(_fashion_mnist, Augment(flip=True, shift=1 / 16), 10),
    "imagefolder": Dataset(_image_folder, Augment(flip=True, crop=0.2), None, files=True),
    "imagenet": Dataset(_imagenet, Augment(flip=True, crop=0.2), 1000, files=True),
    "synthetic": Dataset(_synthetic, Augment(shift=1 / 16), 4),
}
