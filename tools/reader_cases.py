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
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import optuna
import safetensors.torch
import torch
from optuna.storages import BaseStorage
from PIL import Image

import nas.study.storage
from nas import export
from nas.accuracy.csv import read_accel, read_extra, read_supernet
from nas.accuracy.imagenet import SHIPPED_PARAMETERS, Predictor
from nas.accuracy.joint import JointPrediction
from nas.accuracy.networks import read_networks
from nas.accuracy.source import Accuracy, Judgement
from nas.accuracy.supernet import SupernetAccuracy
from nas.accuracy.table import AccuracyTable
from nas.data import DatasetSettings, Split, _idx, load
from nas.devices.kit import parse_result
from nas.devices.ssh import Board, RemoteError
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
from nas.page.report_data import Report
from nas.pictures.decode import read_picture
from nas.pictures.preprocessing import Preprocessing
from nas.pictures.recognition import Recognition
from nas.runtimes.runtime import Runtime
from nas.saving import finish, holder, note_holder
from nas.study.loop import Sampling, Stop, run_search
from nas.study.objective import pareto
from nas.study.problem import Problem
from nas.study.provenance import LatencyOrigin, Provenance
from nas.study.published import PUBLISHED, published_latencies_ms
from nas.study.storage import StudySetting, close_storage, networks_of, open_storage, open_study, table_of
from nas.study.trial import KnownLatency, Trial, record_scatter, remeasure, train_to_the_end
from nas.tensors import read_state_dict, read_tensors
from nas.training import supernet_checkpoint
from nas.training.final import Checkpoints, FinalTraining
from nas.training.inherit import inherit
from nas.training.pretrained import pretrained, table_note
from nas.training.processes import Processes
from nas.training.supernet import Supernet
from nas.training.supernet_training import SupernetTraining
from nas.training_recipes import FinalRecipe, SupernetRecipe
from search_spaces.architecture import Architecture
from search_spaces.errors import MAX_MESSAGE, InputError
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
        made: makes whole files.
        read: takes a content and a folder of its own; raises an InputError or a MeasurementError.
        head_bytes: how much of the beginning is mutated: behind it there is nothing but numbers.
    """

    name: str
    made: Callable[[], Sequence[bytes]]
    read: Callable[[bytes, Path], object]
    head_bytes: int = 1_000_000

    @functools.cached_property
    def seeds(self) -> Sequence[bytes]:
        """Whole files."""
        return self.made()


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


@functools.cache
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


@functools.cache
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
    storage = open_storage(str(folder / "study.journal"))
    names = optuna.get_all_study_names(storage)
    return _go_on(storage, names[0] if names else "whole")


def _go_on(storage: BaseStorage, name: str) -> object:
    """One trial more of a study that was begun, as a search adds it; closes its storage."""
    space = SearchSpace.from_dict(Gate("space").yaml(SPACE))
    try:
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

    def studies() -> list[bytes]:
        return [_study(temporary), whole_study(temporary)]

    return [
        Reader(
            "architecture",
            lambda: [yaml],
            _in_folder("a.yaml", lambda folder: Architecture.from_file(folder / "a.yaml")),
        ),
        Reader("space", lambda: [SPACE.encode()], _in_folder("space.yaml", _read_space)),
        Reader(
            "own_space",
            lambda: [SPACE.encode()],
            _in_folder("s.yaml", lambda folder: read_own_file("search_space", folder / "s.yaml")),
        ),
        Reader(
            "own_board",
            lambda: [_BOARD],
            _in_folder("b.yaml", lambda folder: read_own_file("hardware", folder / "b.yaml")),
        ),
        Reader("table_csv", lambda: [_table_rows()], _csv_of_table),
        Reader("table_json", lambda: [files["table.json"]], _in_folder("table.json", _read_table, files)),
        Reader("networks", lambda: [networks], _in_folder("networks.json", load_networks)),
        Reader("card", lambda: [_card()], _in_folder("card.json", _read_card)),
        Reader("rounds", lambda: [_rounds()], _in_folder("rounds.jsonl", _read_rounds)),
        Reader("samples", lambda: [_samples()], _read_samples),
        Reader(
            "kit",
            lambda: [_kit_result()],
            lambda content, folder: parse_result(_text(content), "kit.jsonl", "rpi4", RUNTIME),
        ),
        Reader("commit", lambda: [commit], _in_folder(".commit.json", finish)),
        Reader("study", studies, _in_folder("study.journal", _read_study)),
        Reader("continued", lambda: [whole_study(temporary)], _in_folder("study.journal", _continue_study)),
        Reader("report", studies, _in_folder("study.journal", _drawn)),
        Reader(
            "figures",
            studies,
            _in_folder("study.journal", lambda folder: write_report(folder, read_study(folder))),
        ),
        Reader(
            "accel",
            lambda: [_accel()],
            _in_folder("accel.csv", lambda folder: read_accel(folder / "accel.csv")),
        ),
        Reader(
            "published",
            lambda: [_published()],
            _in_folder("p.jsonl", lambda folder: read_networks(folder / "p.jsonl")),
        ),
        Reader(
            "extra",
            lambda: [b"architecture,top1,resolution,recipe\nmobilenet_v2,71.8,224,own\na.yaml,67.2,,\n"],
            _in_folder(
                "e.csv", lambda folder: read_extra(folder / "e.csv", None, "scratch"), {"a.yaml": own}
            ),
        ),
        Reader(
            "accuracy_table",
            lambda: [_accuracy_table()],
            _in_folder("t.csv", lambda folder: AccuracyTable(space, folder / "t.csv")),
        ),
        Reader(
            "predictor",
            lambda: [SHIPPED_PARAMETERS.read_bytes()],
            _in_folder("p.safetensors", lambda folder: Predictor.load(folder / "p.safetensors")),
            head_bytes=20_000,
        ),
        Reader("whole_models", lambda: [_whole_models()], _in_folder("models.json", _read_whole_models)),
        Reader(
            "told_by_board",
            lambda: [_told()],
            lambda content, folder: _Told("pi@board", answer=content).describe(),
        ),
        Reader("errors_of_board", lambda: [b"0\nWarning: known hosts\n"], _end_of_board),
        Reader("training", lambda: [_training(temporary)], _in_folder("t.safetensors", _continue_training)),
        Reader("idx", _idx_files, _with_images(_read_idx)),
        Reader(
            "fashion",
            lambda: [_idx_of_images(), gzip.decompress(_idx_of_images())],
            _with_images(_read_fashion, other_idx_files()),
        ),
        Reader(
            "ofa",
            lambda: [_ofa()],
            _in_folder("ofa.csv", lambda folder: read_supernet(folder / "ofa.csv")),
        ),
        Reader(
            "pth",
            _state_dicts,
            _in_folder("w.pth", lambda folder: read_state_dict(folder / "w.pth", Gate("w.pth"))),
        ),
        Reader("initial", lambda: [_whole_weights()], _in_folder("w.safetensors", _read_initial)),
        Reader("exported", lambda: [_whole_weights()], _in_folder("w.safetensors", _read_exported)),
        Reader(
            "begun_supernet",
            lambda: [_supernet_training(temporary / "begun.safetensors").read_bytes()],
            _in_folder("s.safetensors", lambda folder: _begun_supernet(folder / "s.safetensors")),
        ),
        Reader(
            "judging_supernet",
            lambda: [_supernet_training(temporary / "judging.safetensors").read_bytes()],
            _in_folder("s.safetensors", _check_supernet),
        ),
        Reader("beside", _beside, _read_beside),
        Reader("lock", lambda: [_lock(temporary)], _in_folder("lock", _read_lock)),
        Reader("sqlite", lambda: [_sqlite(temporary)], _in_folder("study.db", _read_sqlite)),
        Reader("database", lambda: [_rows(temporary)], _in_database(temporary, _database_report)),
        Reader(
            "database_continued", lambda: [_rows(temporary)], _in_database(temporary, _database_continued)
        ),
        Reader("checkpoint", lambda: [_weights()], _in_folder("w.safetensors", _read_weights)),
        Reader("noted", lambda: [_noted_weights()], _in_folder("w.safetensors", _read_notes)),
        Reader(
            "supernet",
            lambda: [_supernet(temporary)],
            _in_folder("s.safetensors", lambda folder: supernet_checkpoint.read(folder / "s.safetensors")),
        ),
        Reader(
            "pending",
            lambda: [_pending()],
            _in_folder("pending.json", lambda folder: _interrupted(folder, tuple)),
        ),
        Reader(
            "picture",
            _pictures,
            _in_folder("picture.png", lambda folder: read_picture(folder / "picture.png")),
        ),
    ]


def _ofa() -> bytes:
    rows = [
        "2 2 2 2 2,3 3 5 5 7 7 3 3 5 5,3 3 4 4 6 6 3 3 4 4,224,1.0,75.5",
        "2 3 2 2 2,3 3 5 5 7 7 3 3 5 5 3,3 3 4 4 6 6 3 3 4 4 6,192,1.0,74.25",
    ]
    return ("depths,kernels,expansions,resolution,width,top1\n" + "\n".join(rows) + "\n").encode()


def _state_dicts() -> list[bytes]:
    found = []
    for new in (True, False):
        content = io.BytesIO()
        weights = {"a.weight": torch.ones(4, 3), "b.num_batches_tracked": torch.tensor(3)}
        torch.save(weights, content, _use_new_zipfile_serialization=new)
        found.append(content.getvalue())
    return found


def _tiny_network() -> Network:
    torch.manual_seed(0)
    space = SearchSpace.from_dict(Gate("space").yaml(_TINY))
    return Network(space.sample(random.Random(0)))


def _whole_weights() -> bytes:
    """Weights of a small network that say of which, what it tells apart and what it was trained on."""
    network = _tiny_network()
    notes = {
        **table_note(network.architecture),
        **Recognition(("cat", "dog"), Preprocessing.of_photos(16)).notes(),
        "dataset": json.dumps(DatasetSettings("synthetic", None, 0.25, None).to_dict()),
    }
    content = {name: each.contiguous() for name, each in network.state_dict().items()}
    return safetensors.torch.save(content, notes)


def _read_initial(folder: Path) -> object:
    pretrained.cache_clear()
    return inherit(_tiny_network(), pretrained(str(folder / "w.safetensors")))


def _read_exported(folder: Path) -> object:
    path = folder / "w.safetensors"
    trained = export._read_weights(path)
    export._load_weights(_tiny_network(), trained, path)
    return trained


def _begun_supernet(path: Path) -> SupernetTraining:
    torch.manual_seed(0)
    supernet = Supernet(SearchSpace.from_dict(Gate("space").yaml(_TINY)).restricted(classes=4))
    recipe = SupernetRecipe(epochs=1, batch_size=32)
    return SupernetTraining(supernet, _split(), recipe, Processes(0, 1, torch.device("cpu")), path, {})


def _supernet_training(path: Path) -> Path:
    training = _begun_supernet(path)
    training.run()
    return path


def _check_supernet(folder: Path) -> object:
    space = SearchSpace.from_dict(Gate("space").yaml(_TINY)).restricted(classes=4)
    source = SupernetAccuracy(folder / "s.safetensors", lambda _: _split())
    source.check(space)
    return source


_RECOGNITION = Recognition(("cat", "dog"), Preprocessing.of_photos(32))


def _beside() -> list[bytes]:
    return [content.encode() for content in _RECOGNITION.files().values()]


def _read_beside(content: bytes, folder: Path) -> object:
    """Files beside a model that is to be exported; each content as the one that it looks like."""
    for name, own in _RECOGNITION.files().items():
        is_its_kind = (b"{" in content[:5]) == own.startswith("{")
        (folder / name).write_bytes(content if is_its_kind else own.encode())
    export._check_beside(folder / "model.onnx", _RECOGNITION, overwrite=False)
    return _RECOGNITION


def _lock(temporary: Path) -> bytes:
    path = temporary / "held"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    note_holder(descriptor)
    os.close(descriptor)
    return path.read_bytes()


def _read_lock(folder: Path) -> object:
    descriptor = os.open(folder / "lock", os.O_RDONLY)
    try:
        who = holder(descriptor)
    finally:
        os.close(descriptor)
    if len(who) > MAX_MESSAGE or not who.isprintable():
        raise AssertionError("a long or unprintable line")
    return who


def _end_of_board(content: bytes, folder: Path) -> object:
    """The end of a command on a board: its exit status, and what it and ssh said."""
    status, _, said = content.partition(b"\n")
    code = int(status) % 256 if re.fullmatch(rb"\d{1,9}", status) else 255
    try:
        Board("pi@board")._check(code, said.decode(errors="replace"))
    except RemoteError as error:
        raise InputError(error) from None  # as commands print it
    return code


def _idx_of_images(count: int = 20) -> bytes:
    header = bytes((0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 4, 0, 0, 0, 4))
    return gzip.compress(header + bytes(range(16)) * count, mtime=0)


def other_idx_files() -> dict[str, bytes]:
    """Files of Fashion-MNIST besides the training images, by name."""
    labels = gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 20)) + bytes(range(10)) * 2, mtime=0)
    names = {part: f"{part}-labels-idx1-ubyte.gz" for part in ("train", "t10k")}
    return {**dict.fromkeys(names.values(), labels), "t10k-images-idx3-ubyte.gz": _idx_of_images()}


def _read_fashion(folder: Path) -> object:
    return load(DatasetSettings("fashion_mnist", folder), 8)


_TABLES = (
    *("studies", "study_directions", "study_user_attributes", "study_system_attributes", "trials"),
    *("trial_user_attributes", "trial_system_attributes", "trial_params", "trial_values"),
    *("trial_intermediate_values", "trial_heartbeats"),
)
_IN_DATABASE = "database"


@functools.cache
def _rows(temporary: Path) -> bytes:
    """The rows of a whole study in a database, a line each; leaves the database without them behind."""
    whole_study(temporary)
    path = temporary / "empty.db"
    source, target = open_storage(str(temporary / "whole.journal")), open_storage(f"sqlite:///{path}")
    optuna.copy_study(
        from_study_name="whole", from_storage=source, to_storage=target, to_study_name=_IN_DATABASE
    )
    close_storage(source)
    close_storage(target)
    lines = []
    with closing(sqlite3.connect(path)) as database:
        for name in _TABLES:
            cursor = database.execute(f"SELECT * FROM {name}")  # noqa: S608 - names of our own
            names = [each[0] for each in cursor.description]
            lines += [json.dumps([name, dict(zip(names, row, strict=True))]) for row in cursor]
        for name in _TABLES:
            database.execute(f"DELETE FROM {name}")  # noqa: S608
        database.commit()
    return "\n".join(lines).encode()


def _in_database(temporary: Path, read: Callable[[Path, str], object]) -> Callable[[bytes, Path], object]:
    """Read a study from a database that somebody else could write to.

    Optuna talks to SQLite as to PostgreSQL, which takes no text for a number: here anything is a value.
    """

    def run(content: bytes, folder: Path) -> object:
        _rows(temporary)
        path = folder / "study.db"
        shutil.copyfile(temporary / "empty.db", path)
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA synchronous = OFF")
            for line in content.splitlines():
                # What is no row, or none that the database takes, nobody can write into it.
                with suppress(
                    ValueError, TypeError, AttributeError, RecursionError, sqlite3.Error, OverflowError
                ):
                    name, row = json.loads(line)
                    marks = ", ".join("?" * len(row))
                    if name in _TABLES and all(map(str.isidentifier, row)):
                        columns = ", ".join(row)
                        values = [*row.values()]
                        database.execute(f"INSERT INTO {name} ({columns}) VALUES ({marks})", values)  # noqa: S608
            database.commit()
        return read(folder, f"sqlite:///{path}")

    return run


def _sqlite(temporary: Path) -> bytes:
    folder = temporary / "filled"
    folder.mkdir(exist_ok=True)
    _in_database(temporary, lambda _, __: None)(_rows(temporary), folder)
    return (folder / "study.db").read_bytes()


def _read_sqlite(folder: Path) -> object:
    return _database_report(folder, f"sqlite:///{folder}/study.db")


def _database_report(folder: Path, url: str) -> object:
    # The study is called as its folder.
    study = read_study(folder / _IN_DATABASE, url)
    try:
        return _shown(report_of(study, importances=False))
    finally:
        close_storage(study._storage)


def _database_continued(folder: Path, url: str) -> object:
    # Of a study that nobody describes a minute would be waited for who creates it.
    nas.study.storage._BEGINNING_S = 0.2
    return _go_on(open_storage(url), _IN_DATABASE)


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
    return [gzip.compress(content, mtime=0), content]


def _with_images(
    read: Callable[[Path], object], others: dict[str, bytes] | None = None
) -> Callable[[bytes, Path], object]:
    """Read a folder with images in MNIST's format, compressed if they look so."""
    name = "train-images-idx3-ubyte"
    compressed, plain = (_in_folder(each, read, others) for each in (f"{name}.gz", name))

    def run(content: bytes, folder: Path) -> object:
        is_compressed = content.startswith(b"\x1f\x8b")
        (folder / (name if is_compressed else f"{name}.gz")).unlink(missing_ok=True)
        return (compressed if is_compressed else plain)(content, folder)

    return run


def _read_idx(folder: Path) -> object:
    return _idx(folder, "train-images-idx3-ubyte", 3)


def _read_weights(folder: Path) -> object:
    tensors, _ = read_tensors(folder / "w.safetensors", Gate("w.safetensors"))
    if not all(bool(torch.isfinite(each).all()) for each in tensors.values() if each.is_floating_point()):
        raise AssertionError("NaN or infinity accepted")
    return tensors


def _drawn(folder: Path) -> object:
    """All of a report but the figures, which take a hundred times as long."""
    return _shown(report_of(read_study(folder), importances=False))


def _shown(report: Report) -> tuple[str, str, str]:
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
