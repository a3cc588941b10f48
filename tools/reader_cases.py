"""Every reader of files in the project, with small whole files that it accepts."""

from __future__ import annotations

import functools
import gzip
import io
import itertools
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import optuna
import safetensors.torch
import torch
from PIL import Image

from nas.accuracy.csv import read_accel, read_extra
from nas.accuracy.imagenet import SHIPPED_PARAMETERS, Predictor
from nas.accuracy.joint import JointPrediction
from nas.accuracy.networks import read_networks
from nas.accuracy.source import Accuracy, Judgement
from nas.accuracy.table import AccuracyTable
from nas.data import DatasetSettings, Split, _idx, load
from nas.devices.kit import parse_result
from nas.devices.ssh import Board
from nas.latency.calibration import Calibration
from nas.latency.recovery import _interrupted, recovered
from nas.latency.sessions import NetworkRecord, load_networks, networks_text, read_network_records
from nas.latency.table import Latency, LatencyTable, TableHeader, entry
from nas.latency.validation import CARD_SCHEMA, Card, load_card
from nas.latency.whole_models import fitted_head, kept_models
from nas.measuring import board, models
from nas.measuring.rounds import Journal, Round
from nas.network import Network
from nas.overrides import read_own_file
from nas.page.files import pareto_csv, write_report
from nas.page.reading import read_study, report_of
from nas.page.rendering import report_page, summary
from nas.pictures.decode import read_picture
from nas.pictures.preprocessing import Preprocessing
from nas.pictures.recognition import Recognition
from nas.runtimes.runtime import Runtime
from nas.saving import finish
from nas.study.loop import Sampling, Stop, run_search
from nas.study.objective import pareto
from nas.study.problem import Problem
from nas.study.provenance import LatencyOrigin, Provenance
from nas.study.published import PUBLISHED, published_latencies_ms
from nas.study.storage import StudySetting, close_storage, networks_of, open_storage, open_study, table_of
from nas.study.trial import KnownLatency, Trial, record_scatter, remeasure, train_to_the_end
from nas.tensors import read_tensors
from nas.training import supernet_checkpoint
from nas.training.final import Checkpoints, FinalTraining
from nas.training.processes import Processes
from nas.training.supernet import Supernet
from nas.training_recipes import FinalRecipe
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from search_spaces.layers import layer_keys, reachable_layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace
from search_spaces.stage import Parameters
from search_spaces.tasks import task_of

RUNTIME = Runtime()
_NETWORK = reference("mobilenet_v3_small", 64, 10)
_HEADER = TableHeader("host", "cpu", "onnxruntime", "1.20", "fp32", 1, "2026-01-01T00:00:00+00:00")
_BOARD = b"""
name: my-board
host: pi@board
threads: 2
estimate: rpi4
python: ~/nas/bin/python
"""
SPACE = """
name: small
resolutions: [32, 64]
classes: 10
stems: [{channels: 16, activation: hswish}]
stages:
- {stride: 2, depths: [1, 2], widths: [24], kernels: [3, 5], expansions: [3, 4], se: [false, true]}
- stride: 2
  width: 48
  layers: 2
  candidates:
  - {kind: skip}
  - {kernel: 3, expansion: 3}
  - {kernel: 5, expansion: 6, se: true}
heads: [{conv_channels: 128}, {conv_ratio: 6, hidden_channels: 64}]
rounding: {channel_divisor: 8, expansion_divisor: 8}
"""

_TINY = """
name: tiny
resolutions: [16]
classes: 2
stems: [{channels: 4}]
stages: [{stride: 2, depths: [0, 1], widths: [4], expansions: [1, 2]}]
heads: [{conv_channels: 4}]
rounding: {channel_divisor: 4, expansion_divisor: 4}
"""


@dataclass(frozen=True)
class Reader:
    """A reader and what it reads.

    Attributes:
        name: of the kind of file.
        seeds: whole files.
        read: takes a content and a folder of its own; raises an InputError or a MeasurementError.
        head_bytes: how much of the beginning is mutated: behind it there is nothing but numbers.
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable[[bytes, Path], object]
    head_bytes: int = 1_000_000


def table(networks: Sequence[Architecture] = (_NETWORK,)) -> LatencyTable:
    """A table of the layers of some networks."""
    keys = dict.fromkeys(key for each in networks for key in layer_keys(each))
    entries = {key: entry(0.1 + 0.01 * number, 0.001, 40, "measured") for number, key in enumerate(keys)}
    calibration = Calibration.fit(
        np.column_stack([np.linspace(1, 2, 8), np.full(8, 9.0), np.zeros((8, 8))]),
        np.linspace(0.9, 1.7, 8),
        False,
    )
    sessions = ({"anchor_ms": 5.0, "rounds": 40},)
    return LatencyTable(_HEADER, entries).with_entries({}, calibration=calibration, sessions=sessions)


def _in_folder(
    name: str, read: Callable[[Path], object], others: dict[str, bytes] | None = None
) -> Callable[[bytes, Path], object]:
    def run(content: bytes, folder: Path) -> object:
        for other, text in (others or {}).items():
            (folder / other).write_bytes(text)
        (folder / name).write_bytes(content)
        return read(folder)

    return run


def _table_rows() -> bytes:
    return table().files()["table.csv"].encode()


def _read_table(folder: Path) -> object:
    found = LatencyTable.load(folder)
    if not all(math.isfinite(each.latency_ms) and each.latency_ms > 0 for each in found.entries.values()):
        raise AssertionError("a table with a latency that is none")
    return found


def _csv_of_table(content: bytes, folder: Path) -> object:
    """A table whose rows were changed, with the digest that belongs to them: an attacker computes it too."""
    import hashlib

    files = table().files()
    old = hashlib.sha256(files["table.csv"].encode()).hexdigest()
    header = files["table.json"].replace(old, hashlib.sha256(content).hexdigest())
    (folder / "table.csv").write_bytes(content)
    (folder / "table.json").write_text(header)
    return _read_table(folder)


def _read_space(folder: Path) -> object:
    space = SearchSpace.from_yaml(folder / "space.yaml")
    space.parameters()
    return reachable_layer_keys(space)


def _rounds() -> bytes:
    path = Path("/dev/shm" if Path("/dev/shm").exists() else "/tmp") / f"rounds-{os.getpid()}.jsonl"  # noqa: S108
    journal = Journal(path, ["a", "b", "c"], {"device": "cpu"})
    for number in range(4):
        journal.append(Round([1.0, 2.0, 3.0 + number], [5.0] * 3, {"load": 0.5, "throttled": []}, number))
    content = path.read_bytes()
    path.unlink()
    return content


def _read_rounds(folder: Path) -> object:
    from nas.devices.device import measurement

    journal = Journal(folder / "rounds.jsonl", ["a", "b", "c"], {"device": "cpu"})
    if not journal.rounds:
        return None
    found = measurement([*"abc"], journal.rounds, journal.rounds, {})
    return found.steadied()


def _samples() -> bytes:
    names = [str(key) for key in layer_keys(_NETWORK)] + [f"network_{_NETWORK.id}"]
    header = {"schema": 1, "names": names, "identity": {"device": "cpu", "version": "1.20"}}
    rounds = [
        Round([0.1 + number / 100] * len(names), [5.0] * 3, {"load": 0.1}, number) for number in range(4)
    ]
    return "".join(json.dumps(each) + "\n" for each in (header, *(each.__dict__ for each in rounds))).encode()


def _read_samples(content: bytes, folder: Path) -> object:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "samples-1.jsonl").write_bytes(content)
    return recovered(folder, "host", RUNTIME, lambda: [_NETWORK])


def _kit_result() -> bytes:
    names = [*(str(key) for key in layer_keys(_NETWORK)[:5]), f"network_{_NETWORK.id}"]
    header = {
        "result": board.RESULT_SCHEMA,
        "kit": "k",
        "hardware": "rpi4",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "threads": 1,
        "protocol": models.PROTOCOL,
        "rounds": 3,
        "groups": 1,
        "anchor": names[-1],
        "networks": {names[-1]: _NETWORK.to_dict()},
        "board": {"cpu": "Cortex-A72", "runtime_version": "1.20"},
    }
    journal = {"schema": 1, "names": names, "identity": {"kit": "k", "group": 0}}
    rounds = [
        Round([0.1 + number / 100] * len(names), [5.0] * 3, {"load": 0.1}, number).__dict__
        for number in range(3)
    ]
    return "".join(
        json.dumps(each) + "\n" for each in (header, journal, *rounds, {"measured_groups": 1})
    ).encode()


def _card_of(made: LatencyTable) -> Card:
    found = made.header.calibration
    assert found is not None
    errors = (found.left_out, found.uncorrected)
    return Card("title", "2026-01-01T00:00:00", 0.01, *errors, 0.2, {"rounds": 40}, made.state())


def _card() -> bytes:
    return json.dumps({"schema_version": CARD_SCHEMA, **_card_of(table()).to_dict()}).encode()


def _study(folder: Path) -> bytes:
    space = SearchSpace.from_dict(Gate("space").yaml(SPACE))
    storage = open_storage(str(folder / "seed.journal"))
    study = open_study(
        storage,
        "small",
        StudySetting(pareto(), space, {"seed": 0}),
        Provenance(budget_ms=9.0, latency=LatencyOrigin(title="cpu")),
    )
    for number, (parameters, architecture) in zip(range(6), space.members(), strict=False):
        study.add_trial(
            optuna.create_trial(
                values=[50.0 + number, 5.0 + number],
                params=parameters,
                distributions=_distributions(space, parameters),
                user_attrs={
                    "architecture": architecture.id,
                    "kind": "candidate",
                    "name": None,
                    "top1": 50.0 + number,
                    "deviation": 0.5,
                    "accuracy_source": "measured",
                    "latency_ms": 5.0 + number,
                    "latency_source": "measured",
                    "macs": 1000,
                    "parameters": 100,
                },
            )
        )
    close_storage(storage)
    return (folder / "seed.journal").read_bytes()


def whole_study(folder: Path) -> bytes:
    """A study with everything that a search leaves in it."""
    space = SearchSpace.from_dict(Gate("space").yaml(SPACE))
    members = list(itertools.islice(space.members(), 4))
    networks = [*(architecture for _, architecture in members), _NETWORK]
    ids = [each.id for each in networks]
    judgement = Judgement(60.0, 59.0, 12.0, "cat", 200)
    errors = _card_of(table())
    provenance = {
        "hardware": "host",
        "latency": {
            "title": "cpu, ONNX Runtime, fp32, 1 thread",
            "device": "cpu",
            "runtime": "onnxruntime",
            "runtime_version": "1.20",
            "precision": "fp32",
            "threads": 1,
            "counts": {"measured": 20, "predicted": 3},
            "calibration": {"left_out": asdict(errors.calibrated), "uncorrected": asdict(errors.calibrated)},
            "card": errors.to_dict(),
            "warning": "the latency table was never validated",
            "error_percent": {"table": 2.0, "predicted": 3.0, "estimated": 15.0},
        },
        "accuracy": {"name": "imagenet", "recipe": "scratch"},
        "classes": ["cat", "dog"],
        "budget_ms": 9.0,
        "budget_name": "mobilenet_v3_small",
        "budget_margin": 0.05,
        "seed": 0,
        "versions": {"torch": "2.6.0", "timm": None},
        "command": "python -m nas.search",
        "created": "2026-01-01T00:00:00+00:00",
        "task": {
            "name": "segmentation",
            "classes": 21,
            "models": 10,
            "error_percent": 3.0,
            "worst_percent": 6.0,
            "kendall_tau": 0.95,
        },
        "end_to_end": {"trials": 5, "networks": 5, "rounds": 40, "drift": 0.01, "percentile": 90},
        "trained": {"trials": 5, "recipe": {"epochs": 3}, "judged_on": "200 images"},
        "layers": {
            ids[0]: [{"key": str(layer_keys(networks[0])[0]), "latency_ms": 0.1, "source": "measured"}]
        },
        "macs": {"network": ids[0], "counted": 1000, "fvcore": 1000, "fvcore_version": "0.1"},
        "joint": JointPrediction(
            "scratch", tuple(ids), np.full(5, 60.0), np.eye(5), np.full(5, 0.1)
        ).to_dict(),
    }
    path = folder / "whole.journal"
    storage = open_storage(str(path))
    fingerprint = {"search.caution": 1.0, "search.limits.macs": 1e9, "seed": 0}
    records = networks_text([NetworkRecord(_NETWORK, 1.0, 1.0, 1.1, 1.2)])
    study = open_study(storage, "whole", StudySetting(pareto(), space, fingerprint, table(), records))
    study.set_user_attr("provenance", provenance)  # with all that studies of older versions hold
    for number, network in enumerate(networks):
        is_reference = network is _NETWORK
        record = Trial(
            network.id,
            "reference" if is_reference else "candidate",
            5.0 + number,
            "table",
            1000,
            100,
            "mobilenet_v3_small" if is_reference else None,
            network if is_reference else None,
            Accuracy.measured(judgement, ((1, 40.0), (2, 60.0))),
        )
        parameters = {} if is_reference else members[number][0]
        study.add_trial(
            optuna.create_trial(
                values=[60.0 + number, 5.0 + number],
                params=parameters,
                distributions=_distributions(space, parameters),
                user_attrs=record.attributes(),
            )
        )
    remeasure(study, dict.fromkeys(ids, KnownLatency(5.5, "measured", 0.1, 6.0, 7.0, 40.0)))
    for name in ids:
        train_to_the_end(study, name, judgement, {"epochs": 3, "dataset": "synthetic"})
    record_scatter(study, 0.3, {ids[0]: [60.0, 60.5]})
    counts = {"macs": 1000, "parameters": 100, "resolution": 224}
    known = {"top1": 69.8, "latency_ms": 8.0, "latency_source": "measured", **counts}
    study.set_user_attr(PUBLISHED, {"torchvision_resnet18": known})
    close_storage(storage)
    return path.read_bytes()


def _distributions(
    space: SearchSpace, parameters: Parameters
) -> dict[str, optuna.distributions.BaseDistribution]:
    choices = space.parameters()
    return {name: optuna.distributions.CategoricalDistribution(choices[name]) for name in parameters}


@dataclass(frozen=True)
class _Constant:
    """An accuracy and a latency that ask for no work."""

    def accuracy(self, architecture: Architecture) -> Accuracy:
        return Accuracy(50.0, "measured")

    def latency(self, architecture: Architecture) -> Latency:
        return Latency(5.0, "table")


def _continue_study(folder: Path) -> object:
    """One trial more of a study that was begun, as a search adds it."""
    space = SearchSpace.from_dict(Gate("space").yaml(SPACE))
    storage = open_storage(str(folder / "study.journal"))
    try:
        names = optuna.get_all_study_names(storage)
        name = names[0] if names else "whole"
        table_of(storage, name)
        fingerprint = {"search.caution": 1.0, "search.limits.macs": 1e9, "seed": 0}
        study = open_study(storage, name, StudySetting(pareto(), space, fingerprint))
        known = networks_of(study)
        if known is not None:
            read_network_records(Gate("the study", InputError), known)
        published_latencies_ms(study)
        problem = Problem(space, pareto(), _Constant(), _Constant())
        return run_search(study, problem, Sampling("random"), Stop(5))
    finally:
        close_storage(storage)


def _read_study(folder: Path) -> object:
    return report_of(read_study(folder), importances=False)


def _published() -> bytes:
    block = ["inverted_residual", 3, 16, 64, 24, 2, "relu", False, True, 0]
    network = {
        "stem": {"channels": 16, "activation": "hswish", "kernel": 3},
        "blocks": [block, *[[*block[:2], 24, *block[3:]]] * 3],
        "head": {"conv_channels": 96, "hidden_channels": 0, "activation": "hswish"},
        "resolution": 224,
        "top1": 51.5,
        "recipe": "gluoncv",
        "variant": "tiny",
    }
    return (json.dumps(network) + "\n").encode()


def _accel() -> bytes:
    names = [
        f"stage{stage}_{each}" for stage in range(1, 8) for each in ("expansion", "kernel", "layers", "se")
    ]
    row = ["4", "3", "2", "1"] * 7 + ["70.5"]
    return (
        ",".join([*names, "top1"])
        + "\n"
        + ",".join(row)
        + "\n"
        + ",".join(["6", "5", "1", "0"] * 7 + ["71.25"])
        + "\n"
    ).encode()


def _accuracy_table() -> bytes:
    space = SearchSpace.from_dict(Gate("space").yaml(SPACE))
    names = list(space.parameters())
    rows = [
        ",".join([*(str(parameters.get(name, "")) for name in names), f"{60 + number / 10}"])
        for number, (parameters, _) in zip(range(20), space.members(), strict=False)
    ]
    return ("\n".join([",".join([*names, "accuracy"]), *rows]) + "\n").encode()


def _weights() -> bytes:
    return safetensors.torch.save({"a.weight": torch.ones(4, 3), "b.bias": torch.zeros(7)}, {"format": "1"})


def readers(temporary: Path) -> list[Reader]:
    """All readers; ``temporary`` is a folder for making seeds."""
    files = {name: text.encode() for name, text in table().files().items()}
    space = SearchSpace.from_dict(Gate("space").yaml(SPACE))
    networks = networks_text([NetworkRecord(_NETWORK, 1.0, 1.0, 1.1, 1.2)]).encode()
    commit = b'{"moved": {".table.csv.new": "table.csv"}, "removed": ["pending.json"]}'
    yaml = _NETWORK.to_yaml().encode()
    own = reference("mobilenet_v3_large", 192).to_yaml().encode()
    studies = [_study(temporary), whole_study(temporary)]
    return [
        Reader(
            "architecture",
            [yaml],
            _in_folder("a.yaml", lambda folder: Architecture.from_file(folder / "a.yaml")),
        ),
        Reader("space", [SPACE.encode()], _in_folder("space.yaml", _read_space)),
        Reader(
            "own_space",
            [SPACE.encode()],
            _in_folder("s.yaml", lambda folder: read_own_file("search_space", folder / "s.yaml")),
        ),
        Reader(
            "own_board",
            [_BOARD],
            _in_folder("b.yaml", lambda folder: read_own_file("hardware", folder / "b.yaml")),
        ),
        Reader("table_csv", [_table_rows()], _csv_of_table),
        Reader("table_json", [files["table.json"]], _in_folder("table.json", _read_table, files)),
        Reader("networks", [networks], _in_folder("networks.json", load_networks)),
        Reader("card", [_card()], _in_folder("card.json", _read_card)),
        Reader("rounds", [_rounds()], _in_folder("rounds.jsonl", _read_rounds)),
        Reader("samples", [_samples()], _read_samples),
        Reader(
            "kit",
            [_kit_result()],
            lambda content, folder: parse_result(_text(content), "kit.jsonl", "rpi4", RUNTIME),
        ),
        Reader("commit", [commit], _in_folder(".commit.json", finish)),
        Reader("study", studies, _in_folder("study.journal", _read_study)),
        Reader("continued", studies[1:], _in_folder("study.journal", _continue_study)),
        Reader("report", studies, _in_folder("study.journal", _drawn)),
        Reader(
            "figures",
            studies,
            _in_folder("study.journal", lambda folder: write_report(folder, read_study(folder))),
        ),
        Reader("accel", [_accel()], _in_folder("accel.csv", lambda folder: read_accel(folder / "accel.csv"))),
        Reader(
            "published",
            [_published()],
            _in_folder("p.jsonl", lambda folder: read_networks(folder / "p.jsonl")),
        ),
        Reader(
            "extra",
            [b"architecture,top1,resolution,recipe\nmobilenet_v2,71.8,224,own\na.yaml,67.2,,\n"],
            _in_folder(
                "e.csv", lambda folder: read_extra(folder / "e.csv", None, "scratch"), {"a.yaml": own}
            ),
        ),
        Reader(
            "accuracy_table",
            [_accuracy_table()],
            _in_folder("t.csv", lambda folder: AccuracyTable(space, folder / "t.csv")),
        ),
        Reader(
            "predictor",
            [SHIPPED_PARAMETERS.read_bytes()],
            _in_folder("p.safetensors", lambda folder: Predictor.load(folder / "p.safetensors")),
            head_bytes=20_000,
        ),
        Reader("whole_models", [_whole_models()], _in_folder("models.json", _read_whole_models)),
        Reader(
            "told_by_board", [_told()], lambda content, folder: _Told("pi@board", answer=content).describe()
        ),
        Reader("training", [_training(temporary)], _in_folder("t.safetensors", _continue_training)),
        Reader("idx", _idx_files(), _in_folder("train-images-idx3-ubyte.gz", _read_idx)),
        Reader("checkpoint", [_weights()], _in_folder("w.safetensors", _read_weights)),
        Reader("noted", [_noted_weights()], _in_folder("w.safetensors", _read_notes)),
        Reader(
            "supernet",
            [_supernet(temporary)],
            _in_folder("s.safetensors", lambda folder: supernet_checkpoint.read(folder / "s.safetensors")),
        ),
        Reader(
            "pending", [_pending()], _in_folder("pending.json", lambda folder: _interrupted(folder, tuple))
        ),
        Reader(
            "picture",
            _pictures(),
            _in_folder("picture.png", lambda folder: read_picture(folder / "picture.png")),
        ),
    ]


def _read_card(folder: Path) -> object:
    card = load_card(folder)
    return None if card is None else (card.headline, card.is_good)


_MODELS = [replace(_NETWORK, classes=number) for number in range(2, 12)]


def _whole_models() -> bytes:
    return networks_text([NetworkRecord(each, 1.0, 1.0, 1.1, 1.2) for each in _MODELS]).encode()


def _read_whole_models(folder: Path) -> object:
    task = task_of("segmentation", None, "search")
    assert task is not None
    known = table(_MODELS)
    return fitted_head(known, task, kept_models(folder / "models.json", known))


@dataclass(frozen=True)
class _Told(Board):
    """A board that says what it is told to."""

    answer: bytes = b""

    def run(self, command: str, stdin: bytes = b"") -> bytes:
        """The same answer to everything."""
        return self.answer


def _told() -> bytes:
    return json.dumps(
        {"python": "3.11.2", "cpu": "Cortex-A72", "numpy": "2.0", "onnxruntime": "1.23"}
    ).encode()


@functools.cache
def _split() -> Split:
    return load(DatasetSettings("synthetic"), 16)


def _begun(path: Path) -> FinalTraining:
    torch.manual_seed(0)
    network = Network(
        replace(SearchSpace.from_dict(Gate("space").yaml(_TINY)).sample(random.Random(0)), classes=4)
    )
    recipe = FinalRecipe(epochs=1, batch_size=32, warmup_epochs=0.5)
    return FinalTraining(network, _split(), recipe, Processes(0, 1, torch.device("cpu")), Checkpoints(path))


def _training(temporary: Path) -> bytes:
    path = temporary / "training.safetensors"
    training = _begun(path)
    training.run()  # so that there is a state of the optimiser, too
    training.save()
    return path.read_bytes()


def _continue_training(folder: Path) -> object:
    return _begun(folder / "t.safetensors").step


def _idx_files() -> list[bytes]:
    content = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4)) + bytes(range(32))
    return [gzip.compress(content, mtime=0), gzip.compress(content, 0, mtime=0)]


def _read_idx(folder: Path) -> object:
    return _idx(folder, "train-images-idx3-ubyte", 3)


def _read_weights(folder: Path) -> object:
    tensors, _ = read_tensors(folder / "w.safetensors", Gate("w.safetensors"))
    if not all(bool(torch.isfinite(each).all()) for each in tensors.values() if each.is_floating_point()):
        raise AssertionError("NaN or infinity accepted")
    return tensors


def _drawn(folder: Path) -> object:
    """All of a report but the figures, which take a hundred times as long."""
    report = report_of(read_study(folder), importances=False)
    return report_page(report), summary(report), pareto_csv(report)


def _noted_weights() -> bytes:
    """Weights as training writes them, with what they recognise and what they were trained on."""
    recognition = Recognition(("cat", "dog"), Preprocessing.of_photos(32))
    images = DatasetSettings("synthetic", None, 0.25, None)
    notes = {**recognition.notes(), "dataset": json.dumps(images.to_dict())}
    return safetensors.torch.save({"a.weight": torch.ones(2, 2)}, notes)


def _read_notes(folder: Path) -> object:
    gate = Gate("w.safetensors")
    _, notes = read_tensors(folder / "w.safetensors", gate)
    noted = notes.get("dataset")
    images = None if noted is None else DatasetSettings.from_dict(gate.json(noted), gate)
    return images, Recognition.from_notes(notes, gate)


def _supernet(temporary: Path) -> bytes:
    space = SearchSpace.from_dict(Gate("space").yaml(_TINY))
    weights = dict(Supernet(space).shared.items())
    losses = (1.0, 2.0, 3.0)
    made = {"dataset": "synthetic"}
    checkpoint = supernet_checkpoint.Checkpoint(
        space, ("a", "b"), made, 1, 0, 2, (losses,), losses, weights, {}
    )
    path = temporary / "supernet.safetensors"
    supernet_checkpoint.save(path, checkpoint)
    return path.read_bytes()


def _pending() -> bytes:
    names = [*(str(key) for key in layer_keys(_NETWORK)[:3]), f"network_{_NETWORK.id}"]
    content = {"subjects": names, "networks": {names[-1]: _NETWORK.to_dict()}, "rounds": 3}
    return json.dumps(content).encode()


def _pictures() -> list[bytes]:
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, kind)
        found.append(content.getvalue())
    return found


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(str(error)) from None
