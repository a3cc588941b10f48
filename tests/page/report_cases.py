"""A study and hand-made networks for the tests of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from nas.page.network_result import NetworkResult
from nas.page.report_data import Report
from nas.study.loop import Sampling, SearchResult, Stop, run_search
from nas.study.objective import Objective, pareto
from nas.study.problem import Problem
from nas.study.provenance import Provenance
from nas.study.storage import StudySetting, close_storage, open_storage, open_study
from search_spaces.gate import Gate
from search_spaces.layers import layer_keys
from search_spaces.references import reference
from tests.cases import MadeUpAccuracy, MadeUpLatency, architecture_of, small_space

BUDGET_MS = 2.5
REFERENCES = {
    "mobilenet_v2_050": reference("mobilenet_v2_050", 64, 10),
    "mobilenet_v1": reference("mobilenet_v1", 64, 10),
}


def network(top1: float, latency_ms: float, trial: int = 0, name: str | None = None) -> NetworkResult:
    return NetworkResult(
        trial=trial,
        id=f"{trial:010x}",
        kind="candidate" if name is None else "reference",
        name=name,
        top1=top1,
        deviation=0.5,
        accuracy_source="predicted",
        latency_ms=latency_ms,
        latency_source="table",
        macs=10_000_000,
        parameters=1_000_000,
        resolution=224,
        network=None,
    )


def report(*networks: NetworkResult, **fields: Any) -> Report:
    """A report of networks; its provenance is given as studies keep it."""
    known = {"provenance": fields.pop("provenance", {})}
    return Report("study", tuple(networks), provenance=Provenance.of(known, Gate("the study")), **fields)


def provenance(study: optuna.Study) -> dict[str, Any]:
    layers = {}
    for trial in study.get_trials(deepcopy=False):
        architecture = architecture_of(study, trial)
        layers[architecture.id] = [
            {"key": str(key), "latency_ms": 0.1, "source": "measured"} for key in layer_keys(architecture)
        ]
    errors = {"networks": 50, "mape": 0.021, "bias": -0.01, "within_5_percent": 0.94}
    errors |= {"within_10_percent": 1.0, "worst": 0.08, "kendall_tau": 0.97, "spearman_rho": 0.99}
    return {
        "hardware": "host",
        "latency": {
            "title": "a processor, onnxruntime 1.30, fp32, 1 thread, 2026-01-01",
            "device": "a processor",
            "runtime": "onnxruntime",
            "counts": {"measured": 40, "predicted": 2, "estimated": 0},
            "calibration": {"left_out": errors, "uncorrected": errors | {"mape": 0.2}},
            "card": {"created": "2026-01-02", "drift": 0.01, "calibrated": errors},
        },
        "budget_ms": BUDGET_MS,
        "budget_name": "mobilenet_v1",
        "seed": 0,
        "command": "python -m nas.search search.trials=60",
        "layers": layers,
    }


def made_up_study(
    folder: Path,
    trials: int = 60,
    objective: Objective | None = None,
    budget_ms: float | None = BUDGET_MS,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> SearchResult:
    """Search the small space and keep the study in a folder as the search command does."""
    objective = objective or pareto()
    storage = open_storage(str(folder / "study.journal"))
    setting = StudySetting(objective, small_space(), {"search.caution": objective.caution})
    study = open_study(storage, folder.name, setting)
    problem = Problem(small_space(), objective, MadeUpAccuracy(), MadeUpLatency(), REFERENCES, budget_ms)
    result = run_search(study, problem, sampling, Stop(trials))
    study.set_user_attr("provenance", provenance(study) | {"budget_ms": budget_ms})
    close_storage(storage)
    return result


def writable(folder: Path) -> optuna.Study:
    """The study of a folder as a search opens it."""
    storage = open_storage(str(folder / "study.journal"))
    return optuna.load_study(study_name=folder.name, storage=storage)
