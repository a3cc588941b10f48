"""Final training of one network: long, augmented, averaged, distilled; interrupted and continued exactly.

The order of images, what is done to them and dropout follow from the seed and the number of the step alone.
Augmentation is torchvision's (``transforms.v2``), the average of the weights torch's (``swa_utils``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2

from nas.data import Split
from nas.network import Network
from nas.pictures.preprocessing import DEVIATION, MEAN
from nas.tensors import read_tensors, write_tensors
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
from nas.training_recipes import FinalRecipe
from search_spaces.errors import InputError
from search_spaces.gate import Gate

_NOTE = "training"


@dataclass(frozen=True, slots=True)
class FinalProgress:
    """The state of a running training.

    Attributes:
        step: steps done, those of earlier runs included.
        steps: steps wanted.
        loss: of the last step.
        images_per_second: of this run, of all processes together.
        loading_share: share of the time that steps waited for images.
        seconds_left: at that speed.
    """

    step: int
    steps: int
    loss: float
    images_per_second: float
    loading_share: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a training is kept while it lasts, and how often.

    Attributes:
        path: the file; what it holds is continued.
        interval_s: seconds between checkpoints within an epoch.
        epoch_interval_s: at the end of an epoch none is written sooner after the last one.
    """

    path: Path
    interval_s: float = 600.0
    epoch_interval_s: float = 0.0


class FinalTraining:
    """A network, its optimizer, its averaged weights, and how far they are.

    Args:
        network: with the weights to begin with; trained in place.
        split: images of the network's resolution.
        recipe: how to train.
        processes: that train together; each normalises by its own share of a batch.
        checkpoints: where and how often it is kept, None to keep nothing.
        teacher: whose answers are learnt besides the labels, in evaluation mode.

    Raises:
        TrainingError: if the checkpoint is of another training.
        InputError: if images, network and teacher do not fit each other.
    """

    def __init__(
        self,
        network: Network,
        split: Split,
        recipe: FinalRecipe,
        processes: Processes,
        checkpoints: Checkpoints | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        classes = network.architecture.classes
        check_classes(split, "network", classes)
        if recipe.distillation and teacher is None:
            raise InputError("train.distillation needs a teacher: set train.teacher")
        self.batch_size = images_a_step(recipe.batch_size, split, processes)
        self.network = network.to(processes.device).to(memory_format=torch.channels_last)
        self.recipe = recipe
        self._split = split
        self._processes = processes
        self._checkpoints = checkpoints
        self._teacher = None if teacher is None else teacher.to(processes.device).eval()
        self._saved = time.monotonic()
        self._prepare()
        self._average = (
            AveragedModel(self.network, multi_avg_fn=_moving_average(recipe.ema), use_buffers=True)
            if recipe.ema
            else None
        )
        self._optimizer = _optimizer(self.network, recipe)
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=recipe.precision == "fp16")
        self._per_epoch = max(1, len(split.train) // self.batch_size)
        self._mix = _mix(recipe, classes)
        self._epoch, self._batch, self._loss = 0, 0, 0.0
        self.curve: list[float] = []
        if checkpoints is not None and checkpoints.path.exists():
            self._continue(checkpoints.path)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._epoch * self._per_epoch + self._batch

    @property
    def steps(self) -> int:
        """Steps wanted."""
        return self.recipe.epochs * self._per_epoch

    @property
    def result(self) -> Network:
        """The network with the weights that are kept: averaged ones where the recipe says so."""
        found = self.network if self._average is None else self._average.module
        assert isinstance(found, Network)
        return found.eval()

    def run(self, report: Callable[[FinalProgress], None] | None = None, epochs: int | None = None) -> None:
        """Train to the end, and keep checkpoints on the way.

        Args:
            report: told of each step.
            epochs: stop for now when so many are done.

        Raises:
            TrainingError: if the loss is not finite, or memory does not suffice. The last checkpoint is kept.
        """
        first, began, waited = self.step, time.monotonic(), 0.0
        every = self._checkpoints
        while self._epoch < (self.recipe.epochs if epochs is None else epochs):
            self.network.train()
            batches = self._batches()
            while True:
                asked = time.monotonic()
                batch = next(batches, None)
                waited += time.monotonic() - asked
                if batch is None:
                    break
                loss = self._guarded(*batch)
                self._batch += 1
                self._loss += loss
                now = time.monotonic()
                rate = (self.step - first) / max(now - began, 1e-9)
                if report is not None:
                    left = (self.steps - self.step) / rate
                    share = waited / max(now - began, 1e-9)
                    report(FinalProgress(self.step, self.steps, loss, rate * self.batch_size, share, left))
                if every and self._batch < self._per_epoch and now - self._saved >= every.interval_s:
                    self.save()
            self.curve.append(self._loss / max(1, self._batch))
            self._epoch, self._batch, self._loss = self._epoch + 1, 0, 0.0
            if every and time.monotonic() - self._saved >= every.epoch_interval_s:
                self.save()

    # -- one step ------------------------------------------------------------------------------

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        seed = self.recipe.seed * 10_007 + self._epoch
        device = self._processes.device
        for number, (images, labels) in enumerate(self._split.train.batches(self.batch_size, True, seed)):
            if number < self._batch or len(labels) < self.batch_size:
                continue
            torch.manual_seed(seed * 100_003 + number * self._processes.count + self._processes.rank)
            own = self._augmented(self._processes.share(images))
            own = own.contiguous(memory_format=torch.channels_last)
            yield own.to(device, non_blocking=True), self._processes.share(labels).to(device)

    def _augmented(self, images: Tensor) -> Tensor:
        recipe = self.recipe
        if recipe.augment == "none" and not recipe.erasing:
            return images
        mean, deviation = (torch.tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
        policy: list[nn.Module] = []
        if recipe.augment != "none":
            policy.append(v2.TrivialAugmentWide() if recipe.augment == "trivial" else v2.RandAugment())
        if recipe.erasing:
            policy.append(v2.RandomErasing(recipe.erasing))
        # One draw for an image, not one for the batch.
        pixels = ((images * deviation + mean) * 255).clamp(0, 255).to(torch.uint8)
        transform = v2.Compose(policy)
        changed = torch.stack([transform(each) for each in pixels]).float() / 255
        return (changed - mean) / deviation

    def _guarded(self, images: Tensor, labels: Tensor) -> float:
        kept = (
            f"; {self._checkpoints.path} is as it was after the last checkpoint" if self._checkpoints else ""
        )
        try:
            loss = self._step(images, labels)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"out of memory with train.batch_size={self.batch_size}: try "
                f"{max(2, self.batch_size // 2)}{kept}"
            ) from None
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is not finite in epoch {self._epoch + 1}, batch {self._batch + 1}: lower "
                f"train.learning_rate{kept}"
            )
        return loss

    def _step(self, images: Tensor, labels: Tensor) -> float:
        recipe, device = self.recipe, self._processes.device
        for group in self._optimizer.param_groups:
            group["lr"] = cosine_rate(
                recipe.learning_rate, recipe.warmup_epochs, self.step, self.steps, self._per_epoch
            )
        if self._mix is not None:
            images, labels = self._mix(images, labels)
        self._optimizer.zero_grad(set_to_none=True)
        kind = torch.float16 if recipe.precision == "fp16" else torch.bfloat16
        with torch.autocast(device.type, kind, enabled=recipe.precision != "fp32"):
            logits = self.network(images)
            loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            if self._teacher is not None and recipe.distillation:
                with torch.no_grad():
                    target = self._teacher(images).softmax(dim=1)
                taught = functional.cross_entropy(logits, target)
                loss = (1 - recipe.distillation) * loss + recipe.distillation * taught
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimizer)
        gradients = [each.grad for each in self.network.parameters() if each.grad is not None]
        found = loss.detach()[None].clone()
        self._processes.average([*gradients, found])
        value = float(found)
        if math.isfinite(value):
            if recipe.gradient_norm:
                nn.utils.clip_grad_norm_(self.network.parameters(), recipe.gradient_norm)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            if self._average is not None:
                self._average.update_parameters(self.network)
        return value

    def _prepare(self) -> None:
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = self.recipe.dropout
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = self.recipe.norm_momentum
        residual = self.network.residual_layers()
        for number, layer in enumerate(residual, start=1):
            layer.drop_path = self.recipe.drop_path * number / len(residual)

    # -- keeping and continuing ----------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint, if one is kept and this is the first process."""
        if self._checkpoints is None or not self._processes.is_first:
            return
        tensors = {f"network/{name}": each for name, each in self.network.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average/{name}": each for name, each in self._average.state_dict().items()}
        names = {id(each): name for name, each in self.network.named_parameters()}
        for parameter, state in self._optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{names[id(parameter)]}/{key}"] = value
        note = {
            **self._identity(),
            "epoch": self._epoch,
            "batch": self._batch,
            "loss": self._loss,
            "curve": self.curve,
            "scale": self._scaler.get_scale(),
        }
        write_tensors(self._checkpoints.path, tensors, {_NOTE: json.dumps(note)})
        self._saved = time.monotonic()

    def _identity(self) -> dict[str, object]:
        return {
            "architecture": self.network.architecture.to_dict(),
            "classes": list(self._split.classes),
            "recipe": asdict(self.recipe),
        }

    def _continue(self, path: Path) -> None:
        gate = Gate(f"the training {path}", TrainingError, "move it away to begin anew")
        tensors, notes = read_tensors(path, gate)
        if _NOTE not in notes:
            gate.fail("holds tensors, but no training")
        with gate.reading():
            note = gate.mapping(gate.json(notes[_NOTE]))
            for name, value in json.loads(json.dumps(self._identity())).items():
                if note.get(name) != value:
                    gate.fail(f"was begun with another {name}{first_difference(note.get(name), value)}")
            _load(gate, self.network, _below(tensors, "network/"))
            if self._average is not None:
                _load(gate, self._average, _below(tensors, "average/"))
            for name, parameter in self.network.named_parameters():
                kept = _below(tensors, f"optimizer/{name}/")
                if state := checked_state(gate, self._optimizer, name, parameter, kept):
                    self._optimizer.state[parameter] = state
            self._epoch, self._batch = (
                gate.integer("epoch", note["epoch"]),
                gate.integer("batch", note["batch"]),
            )
            self._loss = gate.number("loss", note["loss"])
            self.curve = [gate.number("loss", each) for each in gate.sequence(note["curve"], "curve")]


def _load(gate: Gate, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a network the weights of a file."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        gate.fail(f"does not fit its network: {str(error).splitlines()[-1].strip()}")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): each.clone() for name, each in tensors.items() if name.startswith(prefix)
    }


def _optimizer(network: Network, recipe: FinalRecipe) -> torch.optim.Optimizer:
    groups = parameter_groups(network, recipe.weight_decay)
    if recipe.optimizer == "sgd":
        nesterov = recipe.momentum > 0
        return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, nesterov=nesterov)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=0.0, alpha=0.9, eps=1e-3, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=0.0)


def _moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """An exponential moving average that forgets its beginning sooner than it would by the decay alone."""

    @torch.no_grad()
    def update(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        steps = int(count)
        kept = min(decay, (1 + steps) / (10 + steps))
        for mean, value in zip(average, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - kept)
            else:
                mean.copy_(value)

    return update


def _mix(recipe: FinalRecipe, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    chosen: list[nn.Module] = []
    if recipe.mixup:
        chosen.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        chosen.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    if not chosen:
        return None
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = v2.RandomChoice(chosen)
    return mix
