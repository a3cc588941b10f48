"""The memory of a study's making: what must not change while it goes on, and what its report says."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from nas.assembly import AccuracySource
from nas.cost import cost
from nas.latency.heads import HeadCost
from nas.latency.table import LatencyTable
from nas.latency.validation import Card, card_problem
from nas.network import Network, operations_by_fvcore
from nas.page.report_data import Report
from nas.pictures.folders import read_folder
from nas.searching.budget import LatencyBudget
from nas.settings import (
    LimitsConfig,
    SearchConfig,
    accuracy_settings,
    as_dict,
    milliseconds,
)
from nas.shell import command_line
from nas.study.provenance import (
    CalibrationErrors,
    CardErrors,
    LatencyOrigin,
    LayerLatency,
    Provenance,
    TaskOrigin,
)
from search_spaces.architecture import Architecture
from search_spaces.blocks import Block, Head, Stem
from search_spaces.layers import layer_keys, reachable_layer_keys

_VERSIONS_OF = ("mobilenet-nas", "torch", "torchvision", "optuna", "onnxruntime", "numpy", "scikit-learn")


def fingerprint(
    config: SearchConfig,
    table: LatencyTable,
    source: AccuracySource,
    references: Mapping[str, Architecture],
    budget: LatencyBudget,
) -> dict[str, object]:
    """The settings that must not change while a study goes on.

    Args:
        config: of the search.
        table: where latencies come from.
        source: where accuracies come from, and the space that is searched.
        references: evaluated beside the candidates, by name.
        budget: what was asked for.
    """
    keys = reachable_layer_keys(source.space).union(*(layer_keys(each) for each in references.values()))
    header, estimator = table.header, as_dict(accuracy_settings(config.accuracy))
    for name in ("trials", "minutes"):
        estimator.pop(name, None)
    settings: dict[str, object] = {
        "accuracy": {**estimator, "content": dict(source.digests)},
        "latency table": {
            "hardware": header.hardware,
            "device": header.device,
            "runtime": f"{header.runtime} {header.runtime_version}",
            "precision": header.precision,
            "threads": header.threads,
            "content": table.digest(keys),
        },
        "search.budget_ms": _budget(config.search.budget_ms),
        "search.caution": config.search.caution,
        "search.seed": config.search.seed,
        **_limits(config.search.limits),
        "objective": as_dict(config.objective),
    }
    if header.head:
        # Studies of classifiers say nothing of it, as those that were begun before there were tasks.
        settings["search.task"] = f"{header.head.task.name} of {header.head.task.classes} classes"
    if margin := budget.margin_on(table):
        settings["search.budget_margin"] = round(margin, 6)
    if source.uses_images:
        settings["dataset"] = dataset = as_dict(config.dataset)
        # How pictures are read changes nothing about them; what lies in the folder does.
        for name in ("workers", "download", "skip_unreadable"):
            dataset.pop(name, None)
        if config.dataset.root:
            root = Path(config.dataset.root)
            if config.dataset.name == "imagefolder":
                found = read_folder(root, config.dataset.skip_unreadable).digest()
            else:
                found = folder_digest(root)
            dataset["content"] = found
    return settings


def folder_digest(folder: Path) -> str:
    """A digest of the names and sizes of the files below a folder; results of ours within it do not count."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if "study.journal" in names or "table.json" in names:
            folders.clear()
            continue
        for name in names:
            with contextlib.suppress(OSError):
                path = Path(place, name)
                found.append(f"{path.relative_to(folder)} {path.stat().st_size}")
    return hashlib.sha256("\n".join(sorted(found)).encode(errors="surrogateescape")).hexdigest()[:16]


def _limits(limits: LimitsConfig) -> dict[str, object]:
    # Only those that are set: studies without any stay what they were.
    return {f"search.limits.{name}": value for name, value in as_dict(limits).items() if value is not None}


def _budget(budget: str | None) -> str | None:
    # However it is written: 20ms is 20.0.
    number = None if budget is None else milliseconds(budget)
    return budget if number is None else f"{number:g}"


def checked_macs(architecture: Architecture) -> dict[str, object]:
    """Multiply-accumulates of a network as counted here and, independently, by fvcore, which runs it."""
    found = operations_by_fvcore(Network(architecture).eval(), architecture.resolution)
    return {
        "network": architecture.id,
        "counted": cost(architecture).macs,
        "fvcore": round(found["conv"] + found["linear"]),
        "fvcore_version": importlib.metadata.version("fvcore"),
    }


def provenance(
    config: SearchConfig,
    table: LatencyTable,
    card: Card | None,
    budget: LatencyBudget,
    budget_ms: float | None,
    source: AccuracySource,
) -> Provenance:
    """The circumstances of a study that its report names.

    Args:
        config: of the search.
        table: where latencies come from.
        card: how far the table can be trusted.
        budget: what was asked for.
        budget_ms: what a network may take.
        source: where accuracies come from.
    """
    header = table.header
    fitted = header.calibration
    valid = card if card and not table.changed_since(card.state) else None
    return Provenance(
        hardware=header.hardware,
        latency=LatencyOrigin(
            title=header.title,
            device=header.device,
            runtime=header.runtime,
            runtime_version=header.runtime_version,
            precision=header.precision,
            threads=header.threads,
            created=header.created,
            counts=dict(Counter(each.source for each in table.entries.values())),
            calibration=CalibrationErrors(fitted.left_out, fitted.uncorrected)
            if fitted
            else CalibrationErrors(),
            card=CardErrors(**{each.name: getattr(valid, each.name) for each in fields(CardErrors) if valid}),
            warning=_warning(card, table),
            error_percent=_error_percent(valid, table),
        ),
        accuracy=as_dict(accuracy_settings(config.accuracy)),
        dataset=config.dataset.name if source.uses_images else None,
        classes=source.classes,
        budget_ms=budget_ms,
        budget_name=budget.name,
        budget_margin=0.0 if budget_ms is None else budget.margin_on(table),
        seed=config.search.seed,
        sampler=config.sampler.name,
        versions={name: _version(name) for name in _VERSIONS_OF},
        command=command_line(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task=_task(header.head) if header.head else None,
    )


def _task(head: HeadCost) -> TaskOrigin:
    errors = head.left_out
    return TaskOrigin(
        head.task.name,
        head.task.classes,
        errors.networks,
        100 * errors.mape,
        100 * errors.worst,
        errors.kendall_tau,
    )


def _warning(card: Card | None, table: LatencyTable) -> str | None:
    if table.is_estimate:
        return f"all latencies are estimated; measure with: {table.profile_command}"
    problem = card_problem(card, table)
    return f"the latency table {problem}" if problem else None


# Of errors that are normally distributed, the mean of their sizes times this is their standard deviation.
_DEVIATION = 1.2533


def _error_percent(card: Card | None, table: LatencyTable) -> dict[str, float]:
    """Standard deviation of latencies of whole networks by their source, as far as it is known."""
    header = table.header
    if table.estimate_error is not None:
        return {"estimated": 100 * table.estimate_error}
    if header.head:
        errors = header.head.left_out
    elif card:
        errors = card.calibrated
    elif header.calibration:
        errors = header.calibration.left_out
    else:
        return {}
    percent = 100 * _DEVIATION * errors.mape
    return {"table": percent, "predicted": percent}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def layers(report: Report, table: LatencyTable) -> dict[str, tuple[LayerLatency, ...]]:
    """Where the time goes in the front and the references, layer by layer."""
    # A task's head takes the classifier's place, and depends on more than one layer.
    shown = (Stem, Block) if table.header.head else (Stem, Block, Head)
    result = {}
    for network in (*report.front, *report.references):
        if network.architecture is not None:
            result[network.id] = tuple(
                LayerLatency(str(key), table.share_ms(key), entry.source)
                for key, entry in table.layer_latencies(network.architecture)
                if isinstance(key.part, shown)
            )
    return result
