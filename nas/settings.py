"""The settings of all commands: structured schemas, each setting declared once.

Hydra composes YAML files from ``conf/`` into these dataclasses, so an unknown key or a value of the wrong
type fails before anything runs. Config objects stop at the commands: everything below them takes plain
typed arguments, which :mod:`nas.assembly` makes of them. Importing this imports no library of numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from omegaconf import MISSING, DictConfig, OmegaConf

from nas.training_recipes import FinalRecipe, SupernetRecipe
from search_spaces.blocks import SQUARE, is_oblong
from search_spaces.errors import InputError
from search_spaces.gate import check_database, is_host
from search_spaces.references import FAMILIES

_C = TypeVar("_C")
if TYPE_CHECKING:
    # A section whose schema is chosen by its name: to be looked at before it is used.
    Chosen: TypeAlias = object
else:
    Chosen = Any
# Steady rounds of a measurement.
ROUNDS = 40
# Samplers by the names they had before.
RENAMED_SAMPLERS = {"evolution": "bayesian"}
# Of a network's input; search_spaces refuses less.
LEAST_RESOLUTION = 8


def at_least(name: str, value: float, least: int) -> None:
    """Refuse less of a setting than makes sense.

    Args:
        name: of the setting.
        value: it was given.
        least: that it can be.

    Raises:
        InputError: naming the setting.
    """
    if not value >= least:
        raise InputError(f"{name} must be at least {least}, not {value:g}")


def at_most_one(given: Mapping[str, object]) -> None:
    """Refuse settings that are each something to do instead of the others.

    Args:
        given: their values, by name.

    Raises:
        InputError: naming those that are given.
    """
    names = [name for name, value in given.items() if value]
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)} are done one at a time: leave one of them out")


def _unused(name: str, value: object, default: object, use: str) -> None:
    """Refuse a setting that nothing would read.

    Args:
        name: of the setting.
        value: it was given.
        default: what it is where nobody gives it.
        use: what it goes with.
    """
    if value != default:
        raise InputError(f"{name} goes with {use}: without that nothing reads it")


@dataclass
class HardwareConfig:
    """Where networks will run.

    Attributes:
        name: what tables and reports call it.
        description: one line for people.
        threads: threads the network may use.
        cores: processor cores: more threads are refused; null where that is not known.
        host: user@host of a board reached over ssh; null for this machine or a board without network.
        hosts: several identical boards that share the work.
        measured_here: whether layers are measured on this machine.
        estimate: name of a shipped estimate to use while there is no measured table; null for none.
        temperature_limit_c: boards pause measuring above this.
        python: interpreter on the board that has numpy and the runtime.
        tolerance: how much boards that share the work may differ on layers that all of them measure.
        affinity: numbers of the cores to measure on, as of a big.LITTLE board's fast ones; none: all.
    """

    name: str = MISSING
    description: str = ""
    threads: int = 1
    cores: int | None = None
    host: str | None = None
    hosts: list[str] = field(default_factory=list)
    measured_here: bool = False
    estimate: str | None = None
    temperature_limit_c: float = 75.0
    python: str = "python3"
    tolerance: float = 0.05
    affinity: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.cores is not None and self.threads > self.cores:
            raise InputError(
                f"hardware.threads={self.threads}, but {self.name} has {self.cores} cores (hardware.cores): "
                "threads would wait for each other"
            )
        for host in (self.host, *self.hosts):
            if host is not None and not is_host(host):
                raise InputError(f"hardware.host must be a host or user@host, not {host!r}")
            if host is not None and re.fullmatch(r"[^\[]*[^:]:\d+", host):
                name, port = host.rsplit(":", 1)
                raise InputError(
                    f"hardware.host={host}: ssh takes no port there; write 'Host {name.split('@')[-1]}' and "
                    f"'Port {port}' into ~/.ssh/config and name the host {name}"
                )
        if self.host is not None and self.hosts:
            raise InputError("hardware.host and hardware.hosts name boards twice: give one of them")
        if len(set(self.hosts)) < len(self.hosts):
            raise InputError(f"hardware.hosts={list(self.hosts)} names a board twice")
        if self.threads < 1:
            raise InputError(f"hardware.threads must be at least 1, not {self.threads}")
        if not 20 <= self.temperature_limit_c <= 150:  # below, it would wait for ever
            raise InputError(
                f"hardware.temperature_limit_c must be from 20 to 150, not {self.temperature_limit_c:g}"
            )
        if not 0 < self.tolerance <= 1:
            raise InputError(f"hardware.tolerance must be a share above 0, up to 1, not {self.tolerance:g}")
        plain = self.python.isprintable() and not re.search(r"[\s;&|<>$`'\"()\\]", self.python)
        if not plain or self.python.startswith("-") or not self.python:
            raise InputError(f"hardware.python must be the path of an interpreter, not {self.python!r}")


@dataclass
class RuntimeConfig:
    """The runtime on the hardware.

    Attributes:
        name: onnxruntime, litert, litert_split, openvino, ncnn, executorch, torch or torch_compile.
        precision: fp32 or int8.
        threads: threads within an operator.
    """

    name: str = MISSING
    precision: str = "fp32"
    threads: int = 1


@dataclass
class TableSettings:
    """A latency table: where it lies, and how it is measured where it is missing.

    Attributes:
        folder: where tables are kept.
        max_keys: layers to measure at most; the rest of the space is predicted from them. null: all.
        networks: random members measured end to end for the calibration.
        rounds: steady rounds wanted.
        seed: of the choice of layers, of the networks and of the order of measuring.
    """

    folder: str = "results/latency"
    max_keys: int | None = 1000
    networks: int = 80
    rounds: int = ROUNDS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_keys is not None:
            at_least("profile.max_keys", self.max_keys, 1)
        at_least("profile.networks", self.networks, 0)
        at_least("profile.rounds", self.rounds, 1)
        at_least("profile.seed", self.seed, 0)


@dataclass
class ProfileSettings(TableSettings):
    """A latency table to be measured now, or what else ``python -m nas.profile`` does instead.

    Attributes:
        dry_run: only say what would be measured and how long it would take.
        kit: write a portable measuring kit to this zip file instead of measuring.
        import_file: turn a board's result file into a table instead of measuring; ``profile.import=``.
        export: write the table there is to this file, in once-for-all's YAML form, instead of measuring.
    """

    dry_run: bool = False
    kit: str | None = None
    import_file: str | None = None
    export: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        others = {"profile.import": self.import_file, "profile.export": self.export}
        at_most_one({"profile.kit": self.kit, **others})
        at_most_one({"profile.dry_run": self.dry_run, **others})


@dataclass
class TrainConfig:
    """Accuracy by training; see :class:`nas.accuracy.train.Recipe`, defaults in ``accuracy/train.yaml``.

    Attributes:
        name: ``train``.
        label: part of the study's name.
        trials: default of ``search.trials``.
        minutes: default of ``search.minutes``.
        epochs: passes over the training images, for each candidate.
        halving: successive halving: so many times fewer networks go on at each rung; 0: all do.
        scatter: networks trained with three seeds after the search, for the ± of accuracies; 0: none.
        batch_size: images per step.
        learning_rate: peak of a cosine schedule.
        weight_decay: AdamW's.
        label_smoothing: share of the target spread over all classes.
        norm_momentum: of batch normalisation, PyTorch's convention.
        device: cpu, cuda, or auto.
        threads: of PyTorch while training.
        init: whose weights to begin with: scratch, a name or a file.
    """

    name: str = "train"
    label: str = MISSING
    trials: int = 1000
    minutes: float | None = 5.0
    epochs: int = MISSING
    halving: int = MISSING
    scatter: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    weight_decay: float = MISSING
    label_smoothing: float = MISSING
    norm_momentum: float = MISSING
    device: str = MISSING
    threads: int = MISSING
    init: str = MISSING


@dataclass
class Int8PenaltyConfig:
    """Points of top-1 that int8 costs a network with an activation, where somebody knows them.

    Attributes:
        relu: networks with ReLU.
        relu6: networks with ReLU6.
        hswish: networks with hard swish.
        swish: networks with swish.
    """

    relu: float = 0.0
    relu6: float = 0.0
    hswish: float = 0.0
    swish: float = 0.0


@dataclass
class ImagenetConfig:
    """Predicted ImageNet accuracy; see :mod:`nas.accuracy.imagenet`.

    Attributes:
        name: ``imagenet``.
        label: part of the study's name.
        trials: default of ``search.trials``.
        minutes: default of ``search.minutes``.
        recipe: how networks are trained: ``scratch``, ``mobilenet_v2_v3`` or ``long``.
        parameters: file of fitted parameters, null for the shipped ones.
        extra: CSV of networks of one's own, null for none.
        int8_penalty: what int8 costs.
    """

    name: str = "imagenet"
    label: str = MISSING
    trials: int = 3000
    minutes: float | None = None
    recipe: str = "scratch"
    parameters: str | None = None
    extra: str | None = None
    int8_penalty: Int8PenaltyConfig = field(default_factory=Int8PenaltyConfig)


@dataclass
class TableConfig:
    """Known accuracies; see :mod:`nas.accuracy.table`.

    Attributes:
        name: ``table``.
        label: part of the study's name.
        trials: default of ``search.trials``.
        minutes: default of ``search.minutes``.
        path: CSV with a column for each parameter of the space, and ``accuracy``.
    """

    name: str = "table"
    label: str = MISSING
    trials: int = 300
    minutes: float | None = None
    path: str = MISSING


@dataclass
class ProxyConfig:
    """Training-free scores; see :mod:`nas.accuracy.proxy`.

    Attributes:
        name: ``proxy``.
        label: part of the study's name.
        trials: default of ``search.trials``.
        minutes: default of ``search.minutes``.
        score: naswot or synflow.
        resolution: pixels a side at which networks are scored.
    """

    name: str = "proxy"
    label: str = MISSING
    trials: int = 300
    minutes: float | None = None
    score: str = "synflow"
    resolution: int = 64


@dataclass
class AugmentConfig:
    """Random changes of training images; see :class:`nas.pictures.augment.Augment`.

    Attributes:
        flip: mirrored left to right, half of them.
        crop: least share of the area that is shown, enlarged; null: the whole. Files only.
        shift: moved by up to this share of the side.
        colour: brightness, contrast and saturation changed by up to this share. Files only.
    """

    flip: bool = False
    crop: float | None = None
    shift: float = 0.0
    colour: float = 0.0


@dataclass
class SupernetAccuracyConfig:
    """Accuracy with a supernet's weights; see :mod:`nas.accuracy.supernet`.

    Attributes:
        name: ``supernet``.
        label: part of the study's name.
        trials: default of ``search.trials``.
        minutes: default of ``search.minutes``.
        checkpoint: file that ``python -m nas.supernet`` wrote.
        batches: of training images that give each member its batch-norm statistics.
        threads: of PyTorch while judging.
    """

    name: str = "supernet"
    label: str = MISSING
    trials: int = 1000
    minutes: float | None = None
    checkpoint: str = MISSING
    batches: int = 8
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("batches", "threads"):
            at_least(f"accuracy.{name}", getattr(self, name), 1)


@dataclass
class FinalRecipeSettings(FinalRecipe):
    """Training to the end.

    Attributes:
        init: whose weights to begin with: scratch, a name or a file.
        teacher: whose answers are learnt besides the labels: torchvision:NAME, a name or a file; null: none.
        device: cpu, cuda or auto.
        threads: of PyTorch on the CPU.
    """

    init: str = "scratch"
    teacher: str | None = None
    device: str = "auto"
    threads: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("train.threads", self.threads, 1)


@dataclass
class FinalTrainSettings(FinalRecipeSettings):
    """The network that ``python -m nas.train`` trains, and its recipe.

    Attributes:
        architecture: block table (YAML), or the name of a reference.
        resolution: side of the images, null for the table's own.
        output: file of the weights that are kept.
        checkpoint: what is trained; the same command goes on from there.
        bundle: folder of a deploy bundle to write too: models, weights, code, model card; null: none.
    """

    architecture: str = MISSING
    resolution: int | None = None
    output: str = "trained.safetensors"
    checkpoint: str = "training.safetensors"
    bundle: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution is not None:
            at_least("train.resolution", self.resolution, 1)


@dataclass
class SupernetSettings(SupernetRecipe):
    """The supernet that ``python -m nas.supernet`` trains, and its recipe.

    Attributes:
        checkpoint: what is trained; the same command goes on from there.
        start_from: weights of a member of the space, null to begin from nothing.
        architecture: block table of these weights.
        device: cpu, cuda or auto.
        threads: of PyTorch on the CPU.
    """

    checkpoint: str = "supernet.safetensors"
    start_from: str | None = None
    architecture: str | None = None
    device: str = "auto"
    threads: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("supernet.threads", self.threads, 1)


@dataclass
class DatasetConfig:
    """Which images; see :class:`nas.data.DatasetSettings`.

    Attributes:
        name: which dataset, and part of the study's name; empty: none.
        root: folder of the images.
        resolutions: sides candidates choose among, in pixels; references take the last.
        validation_share: share of images kept from training where the dataset has no split of its own.
        limit: use at most this many training images; null: all.
        workers: processes that read image files.
        download: let torchvision fetch CIFAR into ``root``.
        augment: what training does to images.
        balanced: training shows all classes equally often, rare ones again and again.
        skip_unreadable: leave out pictures that cannot be read, instead of stopping at the first.
    """

    name: str = ""
    root: str | None = None
    resolutions: list[int] = field(default_factory=lambda: [32])
    validation_share: float = 0.25
    limit: int | None = None
    workers: int = 2
    download: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    balanced: bool = False
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if not self.resolutions:
            raise InputError("dataset.resolutions is empty: write the pixels a side, e.g. [128]")
        for side in self.resolutions:
            if is_oblong(side):
                raise InputError(f"dataset.resolutions: {side!r}: {SQUARE}")
            at_least("dataset.resolutions", side, LEAST_RESOLUTION)


@dataclass
class SamplerConfig:
    """The sampler that proposes networks; see :mod:`nas.study.samplers`.

    Attributes:
        name: bayesian, or one of Optuna's samplers, also by the name of its class as NSGAIIISampler.
    """

    name: str = MISSING


@dataclass
class ObjectiveConfig:
    """The objective of a search; see :mod:`nas.study.objective`.

    Attributes:
        name: pareto, budget or mnasnet.
        third: a third objective of pareto: parameters, macs, model_size_mb or peak_memory_mb.
        target_ms: latency at which mnasnet counts the accuracy as it is.
        exponent: of latency over target in mnasnet.
    """

    name: str = MISSING
    third: str | None = None
    target_ms: float | None = None
    exponent: float = -0.07

    def __post_init__(self) -> None:
        if self.name != "pareto":
            _unused("objective.third", self.third, None, "objective=pareto")
        if self.name != "mnasnet":
            _unused("objective.target_ms", self.target_ms, None, "objective=mnasnet")
            _unused("objective.exponent", self.exponent, ObjectiveConfig.exponent, "objective=mnasnet")


@dataclass
class StudyConfig:
    """Where the study is kept.

    Attributes:
        name: what the study is called, and its folder.
        folder: folder of all studies.
        storage: database URL for studies of many machines; null: a file.
        wait_s: how long a database that is away is waited for, at the start 90 s at most; 0: not at all.
    """

    name: str = MISSING
    folder: str = "results"
    storage: str | None = None
    wait_s: float = 1800.0

    def __post_init__(self) -> None:
        at_least("study.wait_s", self.wait_s, 0)
        if self.storage is not None:
            check_database("study.storage", self.storage)
        plain = self.name.isprintable() and Path(self.name).name == self.name
        if not plain or self.name.strip() in ("", ".", ".."):
            raise InputError(
                f"study.name must be the name of a folder, not {self.name!r}; study.folder says where it lies"
            )


@dataclass
class LimitsConfig:
    """The limits on what candidates cost, besides time; null: no limit.

    Attributes:
        parameters: trainable parameters.
        macs: multiply-accumulates.
        model_size_mb: megabytes of weights, of the precision that is searched.
        peak_memory_mb: megabytes of feature maps held at once.
    """

    parameters: float | None = None
    macs: float | None = None
    model_size_mb: float | None = None
    peak_memory_mb: float | None = None

    def __post_init__(self) -> None:
        for name in ("parameters", "macs", "model_size_mb", "peak_memory_mb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"search.limits.{name} must be positive, not {value:g}")


@dataclass
class SearchSettings:
    """The length, aim and company of a search.

    Attributes:
        trials: completed candidates wanted in the study.
        minutes: start no further trial after so long.
        budget_ms: milliseconds; or a network that takes so long: a reference, a file, torchvision:NAME or
            timm:NAME.
        budget_margin: share of it to keep free; null: of milliseconds on estimates their error, else none.
        limits: what else candidates may cost at most.
        references: names of networks to evaluate like candidates.
        caution: standard deviations subtracted from an uncertain accuracy.
        workers: networks evaluated at once on this machine.
        screen: networks scored before the search where accuracy is predicted; their front is where it begins.
        refine: netadapt shrinks a network of the front after the search; null: no refinement.
        refine_from: reference or id on the front to begin with; null: the slowest of the front.
        refine_to_ms: latency to shrink it to; null: the budget.
        end_to_end: networks of the front that are timed end to end after the search, besides the references;
            0: none.
        percentile: of a network's end-to-end latency that must be within the budget: 50, 90 or 99.
        train_best: networks of the front that are trained to the end, with the references, by ``train.*``;
            0: none.
        task: classification; or segmentation or detection, whose heads latencies count then.
        task_classes: that this head tells apart, the background included; null: torchvision's 21 or 91.
        seed: of sampler and training.
        require_validation: refuse a latency table without a good validation card.
    """

    trials: int = 1000
    minutes: float | None = None
    budget_ms: str | None = None
    budget_margin: float | None = None
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    references: list[str] = field(default_factory=lambda: list(FAMILIES))
    caution: float = 1.0
    workers: int = 1
    screen: int = 200_000
    refine: str | None = None
    refine_from: str | None = None
    refine_to_ms: float | None = None
    end_to_end: int = 40
    percentile: int = 50
    train_best: int = 0
    task: str = "classification"
    task_classes: int | None = None
    seed: int = 0
    require_validation: bool = False

    def __post_init__(self) -> None:
        at_least("search.trials", self.trials, 1)
        at_least("search.caution", self.caution, 0)
        at_least("search.workers", self.workers, 1)
        at_least("search.screen", self.screen, 0)
        at_least("search.seed", self.seed, 0)
        at_least("search.end_to_end", self.end_to_end, 0)
        if self.budget_margin is not None and not 0 <= self.budget_margin < 1:
            raise InputError(
                f"search.budget_margin must be a share from 0 to below 1 (0.1 keeps 10 % free), not "
                f"{self.budget_margin:g}"
            )
        if self.percentile not in (50, 90, 99):
            raise InputError(f"search.percentile must be 50, 90 or 99, not {self.percentile}")
        if not self.end_to_end:
            _unused("search.percentile", self.percentile, 50, "search.end_to_end=N")
        if self.budget_ms is None:
            _unused("search.budget_margin", self.budget_margin, None, "search.budget_ms")
        if self.refine is None:
            _unused("search.refine_from", self.refine_from, None, "search.refine=netadapt")
            _unused("search.refine_to_ms", self.refine_to_ms, None, "search.refine=netadapt")
        if self.train_best and self.task != "classification":
            raise InputError(
                f"search.train_best trains classifiers: leave it out with search.task={self.task}, and train "
                "what is found"
            )
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"search.minutes must be positive, not {self.minutes:g}")
        if self.refine not in (None, "netadapt"):
            raise InputError(f"search.refine must be netadapt or null, not {self.refine}")
        if self.refine and self.refine_to_ms is None and self.budget_ms is None:
            raise InputError("search.refine=netadapt needs search.refine_to_ms or search.budget_ms")


@dataclass
class SearchConfig:
    """Everything ``python -m nas.search`` can be told."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    search_space: Chosen = None
    accuracy: Chosen = None
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    search: SearchSettings = field(default_factory=SearchSettings)
    train: FinalRecipeSettings = field(default_factory=FinalRecipeSettings)
    profile: TableSettings = field(default_factory=TableSettings)


AccuracyConfig = ImagenetConfig | ProxyConfig | SupernetAccuracyConfig | TableConfig | TrainConfig
ACCURACY_SCHEMAS: dict[str, type] = {
    "imagenet": ImagenetConfig,
    "proxy": ProxyConfig,
    "supernet": SupernetAccuracyConfig,
    "table": TableConfig,
    "train": TrainConfig,
}


def milliseconds(budget: str) -> float | None:
    """A latency as people write it, ``20``, ``20 ms``, ``22,5ms`` or ``0.02 s``; None for what is no number.

    Raises:
        InputError: for a number that no latency can be.
    """
    match = re.fullmatch(
        r"([+-]?[0-9.,]*[0-9](?:e[+-]?\d+)?|[+-]?inf|[+-]?nan)\s*(ms|s|us|µs)?", budget.strip().lower()
    )
    if match is None:
        return None
    try:
        value = float(match[1].replace(",", ".")) * {"s": 1000.0, "us": 0.001, "µs": 0.001}.get(match[2], 1.0)
    except ValueError:
        raise InputError(
            f"search.budget_ms={budget}: write milliseconds with one decimal point, e.g. 22.5"
        ) from None
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"search.budget_ms must be a positive, finite number of milliseconds, not {budget}")
    return value


def settings_of(config: DictConfig, schema: type[_C]) -> _C:
    """A composed configuration as an object of its dataclass, its sections as objects of theirs.

    Raises:
        OmegaConfBaseException: if a setting is missing or of a wrong kind.
        InputError: if one cannot be.
    """
    made = OmegaConf.to_object(config)
    assert isinstance(made, schema)
    return made


def accuracy_settings(chosen: object) -> AccuracyConfig:
    """A command's settings of its source of accuracy: an object of one of :data:`ACCURACY_SCHEMAS`."""
    assert isinstance(chosen, tuple(ACCURACY_SCHEMAS.values()))
    return cast(AccuracyConfig, chosen)


def as_dict(section: AccuracyConfig | DatasetConfig | LimitsConfig | ObjectiveConfig) -> dict[str, object]:
    """A section as plain values, as studies keep it."""
    return dataclasses.asdict(section)
