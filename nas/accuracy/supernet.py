"""``accuracy=supernet``: a candidate is judged with the weights that a trained supernet has for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from nas.accuracy.source import Accuracy, AccuracyError, Judgement
from nas.accuracy.train import answers
from nas.data import Split
from nas.training.supernet import Supernet, calibrate
from nas.training.supernet_checkpoint import CheckpointError, check_fits, read
from search_spaces.architecture import Architecture
from search_spaces.space import NotInSpaceError, SearchSpace

_BATCH = 128


@dataclass(frozen=True, slots=True)
class SupernetAccuracy:
    """Judges members of a space with the shared weights of a supernet (see :mod:`nas.training.supernet`).

    Each member gets batch-norm statistics of its own from training images. Its accuracy ranks members;
    trained alone a network reaches more.

    Attributes:
        path: the supernet's checkpoint.
        load: gives the dataset at a resolution.
        batches: of training images for the statistics.
        threads: CPU threads of torch.
    """

    path: Path
    load: Callable[[int], Split]
    batches: int = 8
    threads: int = 1

    def check(self, space: SearchSpace) -> None:
        """Refuse a checkpoint that is not of this space and dataset.

        Raises:
            CheckpointError: naming the first difference.
        """
        checkpoint = read(self.path)
        check_fits(self.path, checkpoint, space)
        classes = self.load(space.resolutions[-1]).classes
        if checkpoint.classes != classes:
            raise CheckpointError(
                f"the supernet {self.path} knows the classes {', '.join(checkpoint.classes[:5])}, "
                f"the dataset {', '.join(classes[:5])}: choose the dataset it was trained on"
            )

    @property
    def expensive(self) -> bool:
        """See :class:`nas.accuracy.source.SearchSource`."""
        return True

    def accuracy(self, architecture: Architecture) -> Accuracy:
        """Top-1 of a member on the validation images, with the supernet's weights.

        Raises:
            AccuracyError: if it is no member of the supernet's space.
        """
        torch.set_num_threads(self.threads)
        split = self.load(architecture.resolution)
        try:
            network = _supernet(self.path).network(architecture)
        except NotInSpaceError as error:
            raise AccuracyError(f"the supernet {self.path} has no weights for it: {error}") from None
        images = split.train.batches(min(_BATCH, len(split.train)), False, 0)
        calibrate(network, [batch for batch, _ in itertools.islice(images, self.batches)])
        found = answers(network, split.validation, _BATCH)
        judged = Judgement.of(found.tolist(), split.validation.labels.tolist(), split.classes)
        return Accuracy(judged.top1, "supernet", Accuracy.measured(judged).deviation)


@lru_cache(maxsize=1)
def _supernet(path: Path) -> Supernet:
    # Once for each process: a copy that a worker gets holds the path alone.
    return read(path).supernet()
