"""``python -m nas.search``: networks for the target hardware, accuracy against latency."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import torch
from omegaconf import OmegaConf
from threadpoolctl import threadpool_limits

from nas.accuracy.train import TrainedAccuracy
from nas.command import command
from nas.console import console, print_report_summary, search_progress, warn
from nas.finish import measure_seed_scatter, train_best
from nas.page.files import write_report
from nas.page.reading import report_of
from nas.saving import write_atomically
from nas.searching.confirmation import measure_front, record_foreign, shrink, time_best
from nas.searching.preparation import Preparation, begin, prepare
from nas.searching.provenance import checked_macs, layers
from nas.searching.request import SearchRequest
from nas.settings import SearchConfig, TrainConfig
from nas.study.loop import Execution, Sampling, Stop, run_search
from nas.study.published import publish_tables
from nas.study.storage import close_storage, open_storage, refresh_study
from search_spaces.errors import masked


def main(config: SearchConfig) -> None:
    """Measure what is missing, search, measure the front, report."""
    # Sums over several threads come in another order with another number of them: one thread gives the same
    # trials everywhere. Training has a setting of its own (accuracy.threads).
    torch.set_num_threads(1)
    with threadpool_limits(1):
        _search(SearchRequest.of(config))


def _search(request: SearchRequest) -> None:
    named = request.config.study
    location = named.storage or str(request.folder / "study.journal")
    # Nothing is made on the disk before everything that can be refused was checked.
    begun = named.storage or Path(location).exists()
    storage = open_storage(location, named.wait_s, warn) if begun else None
    try:
        prepared = prepare(request, storage)
        storage = storage or open_storage(location, named.wait_s, warn)
        study, prepared = begin(request, prepared, storage)
        config = OmegaConf.to_yaml(OmegaConf.structured(request.config))
        write_atomically(request.folder / "config.yaml", masked(config))
        _run(request, prepared, study, storage)
        _confirm(request, prepared, study)
        print_report_summary(write_report(request.folder, study))
    finally:
        if storage is not None:
            close_storage(storage)


def _run(
    request: SearchRequest,
    prepared: Preparation,
    study: optuna.Study,
    storage: optuna.storages.BaseStorage,
) -> None:
    """Propose and evaluate until the search is over."""
    config, settings = request.config, request.settings
    problem = prepared.problem(request)
    with search_progress(settings.trials) as show:
        result = run_search(
            study,
            problem,
            Sampling(config.sampler.name, settings.seed, prepared.first),
            Stop(settings.trials, settings.minutes * 60 if settings.minutes is not None else None),
            Execution(settings.workers, storage if request.is_shared else None),
            show,
        )
    console.print(f"stopped: {result.stopped} ({result.evaluated:,} candidates in {result.seconds:.0f} s)")
    if settings.refine:
        shrink(study, problem, request)
    estimator = request.source.estimator
    if isinstance(estimator, TrainedAccuracy) and isinstance(config.accuracy, TrainConfig):
        measure_seed_scatter(study, estimator, config.accuracy.scatter)


def _confirm(request: SearchRequest, prepared: Preparation, study: optuna.Study) -> None:
    """Measure and train what is going to be recommended, and note what the report has to say of it."""
    config, settings = request.config, request.settings
    table = measure_front(study, prepared.table, request)
    # Measuring the front changed the table: from now on this one is the study's.
    prepared = replace(prepared, table=table)
    if request.foreign and not prepared.foreign_ms:
        record_foreign(study, table, request)
    if prepared.published:
        publish_tables(study, prepared.published, table)
    known = prepared.provenance(request)
    known = replace(known, end_to_end=time_best(study, table, request))
    known.keep(study)
    if settings.train_best:
        best = train_best(study, settings.train_best, request.images, config.train, request.folder)
        known = replace(known, trained=best)
        known.keep(study)
    report = report_of(study, importances=False)
    known = replace(known, layers=layers(report, table))
    if report.front and report.front[0].architecture is not None:
        known = replace(known, macs=checked_macs(report.front[0].architecture))
    if predictor := request.source.batch_predictor:
        known = replace(known, joint=predictor.joint(report.compared))
    if request.is_shared:  # what others go by stays as it is
        known.keep(study)
    else:
        refresh_study(study, request.setting(table), known)


if __name__ == "__main__":
    command("search", SearchConfig, main)
