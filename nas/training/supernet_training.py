"""Training a supernet: the sandwich rule with in-place distillation (Yu et al. 2020, arXiv 2003.11142).

Each step trains the largest member on the labels, and the smallest and some random ones on what the largest
answered. Learning rate, order of images, random members and dropout follow from the seed and the number of
the step alone, so that a training that was interrupted goes on exactly as it would have.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.data import Split
from nas.training.optimizers import checked_state, parameter_groups
from nas.training.processes import Processes
from nas.training.steps import (
    TrainingError,
    check_classes,
    cosine_rate,
    first_difference,
    images_a_step,
    is_out_of_memory,
)
from nas.training.supernet import Supernet, extreme_member
from nas.training.supernet_checkpoint import Checkpoint, CheckpointError, read, save
from nas.training_recipes import SupernetRecipe
from search_spaces.architecture import Architecture
from search_spaces.gate import Gate, JsonObject
from search_spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class SupernetProgress:
    """The state of a running training.

    Attributes:
        step: steps done, those of earlier runs included.
        steps: steps wanted.
        loss: of the last step: largest, smallest and mean of the random members.
        images_per_second: of this run, of all processes together.
        seconds_left: at that speed.
    """

    step: int
    steps: int
    loss: tuple[float, ...]
    images_per_second: float
    seconds_left: float


class SupernetTraining:
    """A supernet, its optimizer, and how far they are.

    Args:
        supernet: with the weights to begin with; trained in place.
        split: images at the largest resolution of the space.
        recipe: how to train.
        processes: that train together.
        checkpoint: file that the training is kept in, None to keep nothing. What it holds is continued.
        made: plain settings that must be the same when it is continued, besides the recipe.
        save_interval_s: seconds between checkpoints within an epoch.

    Raises:
        CheckpointError: if the file is damaged, or of another training; the first difference is named.
        InputError: if images and space do not fit each other.
    """

    def __init__(
        self,
        supernet: Supernet,
        split: Split,
        recipe: SupernetRecipe,
        processes: Processes,
        checkpoint: Path | None = None,
        made: Mapping[str, object] | None = None,
        save_interval_s: float = 600.0,
    ) -> None:
        check_classes(split, "space", supernet.space.classes)
        self.batch_size = images_a_step(recipe.batch_size, split, processes)
        self.supernet = supernet.to(processes.device)
        self.recipe = recipe
        self._split = split
        self._processes = processes
        self._path = checkpoint
        self._made = {**(made or {}), "recipe": asdict(recipe)}
        self._save_interval_s = save_interval_s
        self._largest = extreme_member(supernet.space, "largest")
        self._smallest = extreme_member(supernet.space, "smallest")
        # An incomplete last batch is dropped.
        self._per_epoch = max(1, len(split.train) // self.batch_size)
        self._optimizer = torch.optim.AdamW(parameter_groups(supernet, recipe.weight_decay), lr=0.0)
        self._epoch, self._batch = 0, 0
        self._partial: tuple[float, ...] = (0.0, 0.0, 0.0)
        self.curve: list[tuple[float, ...]] = []
        if checkpoint is not None and checkpoint.exists():
            self._continue(checkpoint)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._epoch * self._per_epoch + self._batch

    @property
    def steps(self) -> int:
        """Steps wanted."""
        return self.recipe.epochs * self._per_epoch

    def run(self, report: Callable[[SupernetProgress], None] | None = None) -> None:
        """Train to the end, and keep checkpoints on the way.

        Raises:
            TrainingError: if a loss is not finite, or memory does not suffice. The last checkpoint is kept.
        """
        first, began = self.step, time.monotonic()
        saved = began
        while self._epoch < self.recipe.epochs:
            for images, labels in self._batches():
                loss = self._guarded_step(images, labels)
                self._batch += 1
                self._partial = tuple(a + b for a, b in zip(self._partial, loss, strict=True))
                now = time.monotonic()
                rate = (self.step - first) / max(now - began, 1e-9)
                if report is not None:
                    left = (self.steps - self.step) / rate
                    report(SupernetProgress(self.step, self.steps, loss, rate * self.batch_size, left))
                if self._batch < self._per_epoch and now - saved >= self._save_interval_s:
                    self.save()
                    saved = now
            self.curve.append(tuple(each / self._batch for each in self._partial))
            self._epoch, self._batch, self._partial = self._epoch + 1, 0, (0.0, 0.0, 0.0)
            self.save()
            saved = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint, if one is kept and this is the first process."""
        if self._path is None or not self._processes.is_first:
            return
        names = {id(each): name for name, each in self.supernet.shared.items()}
        finished = self._epoch >= self.recipe.epochs
        optimizer = {
            f"optimizer/{names[id(parameter)]}/{key}": value
            for parameter, state in self._optimizer.state.items()
            for key, value in state.items()
        }
        save(
            self._path,
            Checkpoint(
                space=self.supernet.space,
                classes=self._split.classes,
                made=self._made,
                epoch=self._epoch,
                batch=self._batch,
                epochs=self.recipe.epochs,
                curve=tuple(self.curve),
                partial=self._partial,
                weights=dict(self.supernet.shared.items()),
                optimizer={} if finished else optimizer,
            ),
        )

    # -- one step ------------------------------------------------------------------------------

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The images and labels left of this epoch for this process."""
        seed = self.recipe.seed * 10_007 + self._epoch
        for number, (images, labels) in enumerate(self._split.train.batches(self.batch_size, True, seed)):
            if number >= self._batch and len(labels) == self.batch_size:
                device = self._processes.device
                own = self._processes.share(images).contiguous(memory_format=torch.channels_last)
                yield own.to(device, non_blocking=True), self._processes.share(labels).to(device)

    def _guarded_step(self, images: Tensor, labels: Tensor) -> tuple[float, ...]:
        try:
            loss = self._step(images, labels)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
        else:
            if not all(map(math.isfinite, loss)):
                raise TrainingError(
                    f"the loss is not finite in epoch {self._epoch + 1}, batch {self._batch + 1}: lower "
                    f"supernet.learning_rate{self._kept()}"
                )
            return loss
        raise TrainingError(
            f"out of memory with supernet.batch_size={self.batch_size}{self._fitting(images, labels)}"
            f"{self._kept()}"
        )

    def _kept(self) -> str:
        if self._path is None or not self._path.exists():
            return ""
        return f"; {self._path} is as it was after the last checkpoint"

    def _fitting(self, images: Tensor, labels: Tensor) -> str:
        """The batch size there is room for, in words."""
        if self._processes.count > 1:
            return ""  # the others may have had room, and wait
        count = len(labels)
        while count > 2:
            count //= 2
            self._optimizer.zero_grad(set_to_none=True)
            if images.is_cuda:
                torch.cuda.empty_cache()
            try:
                self._gradients(images[:count], labels[:count])
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                continue
            return f": {count} would fit"
        return ": not even 2 would fit"

    def _step(self, images: Tensor, labels: Tensor) -> tuple[float, ...]:
        recipe = self.recipe
        for group in self._optimizer.param_groups:
            group["lr"] = cosine_rate(
                recipe.learning_rate, recipe.warmup_epochs, self.step, self.steps, self._per_epoch
            )
        self._optimizer.zero_grad(set_to_none=True)
        losses = self._gradients(images, labels)
        parameters = [each for each in self.supernet.parameters() if each.grad is not None]
        gradients = [each.grad for each in parameters if each.grad is not None]
        self._processes.average([*gradients, losses])
        loss = tuple(losses.tolist())
        if all(map(math.isfinite, loss)):
            if recipe.gradient_norm:
                nn.utils.clip_grad_norm_(parameters, recipe.gradient_norm)
            self._optimizer.step()
        return loss

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Gradients of all members of this step; losses of the largest, the smallest, the random ones."""
        recipe = self.recipe
        generator = random.Random(f"{recipe.seed}/{self.step}")
        drawn = [self.supernet.space.sample(generator) for _ in range(recipe.random_members)]
        # The same in all processes: dropout draws for the whole batch, and takes its share.
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)
        losses = torch.zeros(3, device=images.device)
        logits = self._logits(self._largest, images, dropout=True)
        loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        losses[0] = loss.detach()
        target = logits.detach().softmax(dim=1) if recipe.distillation else labels
        for number, member in enumerate((self._smallest, *drawn)):
            loss = functional.cross_entropy(self._logits(member, images, dropout=False), target)
            loss.backward()  # type: ignore[no-untyped-call]
            losses[min(number, 1) + 1] += loss.detach() / (max(1, len(drawn)) if number else 1)
        return losses

    def _logits(self, member: Architecture, images: Tensor, dropout: bool) -> Tensor:
        if member.resolution != images.shape[-1]:
            images = functional.interpolate(
                images, (member.resolution,) * 2, mode="bilinear", antialias=True, align_corners=False
            )
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits: Tensor = self.supernet(images, member, dropout=dropout)
        return logits.float()

    # -- continuing ----------------------------------------------------------------------------

    def _continue(self, path: Path) -> None:
        found = read(path)
        here = _plain(self.supernet.space, self._split.classes, self._made)
        there = _plain(found.space, found.classes, found.made)
        for key in {**here, **there}:
            if here.get(key) != there.get(key):
                which = f"{key}{first_difference(there.get(key), here.get(key))}"
                raise CheckpointError(
                    f"the supernet {path} was begun with another {which}: "
                    "restore it or give another supernet.checkpoint"
                )
        gate = Gate(f"the supernet {path}", CheckpointError, "move it away to begin anew")
        self.supernet.shared.load_state_dict(dict(found.weights))
        for name, parameter in self.supernet.shared.items():
            prefix = f"optimizer/{name}/"
            kept = {
                key.removeprefix(prefix): value
                for key, value in found.optimizer.items()
                if key.startswith(prefix) and "/" not in key.removeprefix(prefix)
            }
            if state := checked_state(gate, self._optimizer, name, parameter, kept):
                self._optimizer.state[parameter] = state
        self._epoch, self._batch = found.epoch, found.batch
        self._partial = tuple(found.partial)
        self.curve = list(found.curve)


def _plain(space: SearchSpace, classes: Sequence[str], made: Mapping[str, object]) -> JsonObject:
    """All that must be the same when a training goes on, as a file has it."""
    found: JsonObject = json.loads(json.dumps({"space": space.to_dict(), "classes": classes, **made}))
    return found
