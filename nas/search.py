"""``python -m nas.search``: networks for the target hardware, accuracy against latency."""

from __future__ import annotations

import functools
import math
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import torch
from omegaconf import OmegaConf
from threadpoolctl import threadpool_limits

from nas.accuracy.features import not_covered
from nas.accuracy.imagenet import Predictor
from nas.accuracy.source import AccuracyEstimator, Int8Penalty
from nas.accuracy.train import TrainedAccuracy
from nas.assembly import accuracy_of, dataset_settings, hardware_of, limits_of, objective_of, runtime_of
from nas.budget import LatencyBudget, foreign_references, is_foreign
from nas.command import command
from nas.console import console, measuring_progress, print_report_summary, search_progress, warn
from nas.cost import Limits
from nas.finish import check_trainable, measure_seed_scatter, train_best
from nas.latency.end_to_end import spread
from nas.latency.hardware import Hardware
from nas.latency.provision import TableEffort, profile_command, reference_architectures, table_folder
from nas.latency.sessions import NetworkRecord, networks_text, read_networks
from nas.latency.source import LatencySource, check_timed_from_here, keys_of
from nas.latency.table import LatencyTable
from nas.latency.validation import Card, card_problem, load_card
from nas.measuring.conditions import boot_id
from nas.measuring.rounds import MeasurementError
from nas.page.files import write_report
from nas.page.reading import report_of
from nas.page.report_data import JOINT, TRAINED, Report
from nas.page.torchvision_reference import (
    TorchvisionReference,
    TorchvisionReferenceError,
    check_measurable,
    check_runnable,
    measure_end_to_end,
    record,
    record_tables,
    recorded,
)
from nas.provenance import checked_macs, fingerprint, layers, provenance
from nas.quantities import latency_text
from nas.runtimes.runtime import Runtime
from nas.saving import check_output, write_atomically
from nas.settings import (
    SearchConfig,
    SearchSettings,
    TrainConfig,
)
from nas.spread import evenly_spread
from nas.study.database import StorageError
from nas.study.loop import Execution, Sampling, Stop, run_search
from nas.study.neighbourhood import BudgetError, Neighbourhood
from nas.study.netadapt import refine
from nas.study.problem import Problem
from nas.study.scorer import BatchScorer, layer_latency
from nas.study.screening import screen
from nas.study.storage import (
    StudySetting,
    close_storage,
    networks_of,
    open_storage,
    open_study,
    refresh_study,
    table_of,
)
from nas.study.trial import remeasure
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError, masked
from search_spaces.gate import Gate
from search_spaces.layers import LayerKey, layer_keys, reachable_layer_keys
from search_spaces.references import UnknownReferenceError, is_reference, published_top1
from search_spaces.space import NotInSpaceError, SearchSpace
from search_spaces.stage import Parameters
from search_spaces.tasks import Task, TaskNetwork, check_space, task_of

# After measuring the front's layers the front may be another one: look again, but not for ever.
_FRONT_PASSES = 3
# Screening more networks than several times a space has members finds nothing new.
_SCREENED_SHARE = 4


def main(config: SearchConfig) -> None:
    """Measure what is missing, search, measure the front, report."""
    # Sums over several threads come in another order with another number of them: one thread gives the same
    # trials everywhere. Training has a setting of its own (accuracy.threads).
    torch.set_num_threads(1)
    with threadpool_limits(1):
        _search(config)


def _search(config: SearchConfig) -> None:
    settings = replace(config.search)  # those without foreign references; the file keeps what was asked for
    runtime = runtime_of(config.runtime)
    objective = objective_of(config.objective, settings.caution, runtime.precision)
    limits = limits_of(settings.limits, runtime.precision)
    board = hardware_of(config.hardware)
    profiling = config.profile
    task = task_of(settings.task, settings.task_classes, "search")
    foreign = foreign_references(settings.references)
    settings.references = [name for name in settings.references if not is_foreign(name)]
    space, accuracy, resolution = accuracy_of(config, SearchSpace.from_dict(config.search_space))
    budget = LatencyBudget.read(settings.budget_ms, settings.budget_margin, space, resolution)
    if budget.foreign is not None and budget.name not in [each.name for each in foreign]:
        foreign.append(budget.foreign)
    check_runnable(foreign, board.name, board.measured_here and not board.hosts, runtime)
    images = dataset_settings(config.dataset)
    final = config.train
    if settings.train_best:
        check_trainable(space, images, final)
    classes: tuple[str, ...] = ()
    if isinstance(accuracy, TrainedAccuracy) and resolution is not None:
        classes = accuracy.load(resolution).classes
    references = reference_architectures(space, settings.references, resolution)
    if settings.refine and (start := settings.refine_from) and not re.fullmatch("[0-9a-f]{10}", start):
        name, network = _start(start, space, resolution)
        references.setdefault(name, network)
        settings.refine_from = name
    judged, published = _judged(references, accuracy)
    if task:
        _check_task(task, board, runtime, space, references.values(), [each.name for each in foreign])
    named = config.study
    folder = Path(named.folder) / named.name
    check_output(folder / "report.html", "study.folder", overwrite=True)
    tables = table_folder(Path(profiling.folder), board.name, runtime)
    latencies = LatencySource(
        board,
        runtime,
        tables,
        TableEffort(profiling.max_keys, profiling.networks, profiling.seed),
        profiling.rounds,
        measuring_progress,
        console.print,
    )

    extra = [*references.values(), *([budget.architecture] if budget.architecture else [])]
    location = named.storage or str(folder / "study.journal")
    # Nothing is made on the disk before everything that can be refused was checked.
    opening = functools.partial(open_storage, location, named.wait_s, warn)
    storage = opening() if named.storage or Path(location).exists() else None
    try:
        carried = table_of(storage, named.name) if storage is not None else None
        table = latencies.table(space, extra, carried)
        table = latencies.for_task(table, task, space, extra, carried)
        console.print(f"latency: {table.header.title}")
        if runtime.precision == "int8" and isinstance(accuracy, Predictor):
            warn(
                "  mind: accuracies are those of fp32; what quantising costs is not predicted "
                "(accuracy.int8_penalty, or accuracy=train to measure it)"
            )
        judged, published = table.runnable(judged, warn), table.runnable(published, warn)
        _say_refused(table, space, runtime)
        check_measurable(foreign, table, runtime)
        card = load_card(tables)
        _check_card(card, table, board, runtime, settings.require_validation)
        timed: dict[str, float] = {}
        if budget.foreign is not None:
            timed = _time_foreign(foreign, _recorded(storage, named.name), table, latencies, folder)
        budget_ms = _budget_ms(budget, table, space, timed, limits)
        if margin := budget_ms and budget.margin_on(table):
            console.print(
                f"budget: {latency_text(budget_ms)}, {100 * margin:.3g} % of it kept free"
                + ("" if budget.margin else " for the error of the estimate")
                + " (search.budget_margin)"
            )
        first: list[Parameters] = []
        if settings.screen and isinstance(accuracy, Predictor):
            # A study that was begun keeps its table; so do machines that share one.
            begun = named.storage is not None or carried is not None
            measuring = None if begun else latencies
            table, first = _screen(space, accuracy, table, measuring, settings, budget_ms, limits)
        storage = storage or opening()
        opened = open_study(
            storage,
            named.name,
            StudySetting(
                objective,
                space,
                fingerprint(config, table, space, references, budget),
                table.restricted(keys_of(space, extra)),
                networks_text(spread(latencies.networks())),
            ),
            provenance(config, table, card, budget, budget_ms, classes),
        )
        if carried is None and (begun_elsewhere := table_of(storage, named.name)) is not None:
            # Of machines that began it together one has given the layers.
            table = latencies.table(space, extra, begun_elsewhere)
            budget_ms = _budget_ms(budget, table, space, timed, limits)
        if timed:
            record(opened, foreign, timed)
            _journal(folder).unlink(missing_ok=True)
        if named.storage:
            _check_agreement(opened, table, latencies, folder)
        write_atomically(folder / "config.yaml", masked(OmegaConf.to_yaml(OmegaConf.structured(config))))
        problem = Problem(space, objective, accuracy, table, judged, budget_ms, limits)
        with search_progress(settings.trials) as show:
            result = run_search(
                opened,
                problem,
                Sampling(config.sampler.name, settings.seed, first),
                Stop(settings.trials, settings.minutes * 60 if settings.minutes is not None else None),
                Execution(settings.workers, storage if named.storage else None),
                show,
            )
        console.print(
            f"stopped: {result.stopped} ({result.evaluated:,} candidates in {result.seconds:.0f} s)"
        )
        if settings.refine:
            _refine(opened, problem, references, settings)
        if isinstance(accuracy, TrainedAccuracy) and isinstance(config.accuracy, TrainConfig):
            measure_seed_scatter(opened, accuracy, config.accuracy.scatter)
        table = _measure_front(opened, table, latencies)
        if foreign and not timed:
            try:
                record(opened, foreign, _time_foreign(foreign, {}, table, latencies, folder))
                _journal(folder).unlink(missing_ok=True)
            except (MeasurementError, TorchvisionReferenceError) as error:
                names = ", ".join(each.name for each in foreign)
                warn(f"warning: {names} are not in the report: {error}")
        if published:
            record_tables(opened, published, table)
        # Measuring the front changed the table: from now on this one is the study's.
        known = provenance(config, table, card, budget, budget_ms, classes)
        end_to_end = _time_best(opened, table, latencies, settings, folder)
        if end_to_end:
            known["end_to_end"] = end_to_end
        opened.set_user_attr("provenance", known)
        if settings.train_best:
            known[TRAINED] = train_best(opened, settings.train_best, images, final, folder)
            opened.set_user_attr("provenance", known)
        report = report_of(opened, importances=False)
        known = {**known, "layers": layers(report, table)}
        if report.front and report.front[0].architecture is not None:
            known["macs"] = checked_macs(report.front[0].architecture)
        if isinstance(accuracy, Predictor):
            known[JOINT] = accuracy.joint(report.compared).to_dict()
        if named.storage:  # what others go by stays as it is
            opened.set_user_attr("provenance", known)
        else:
            wanted = fingerprint(config, table, space, references, budget)
            layers_used = table.restricted(keys_of(space, extra))
            refresh_study(opened, StudySetting(objective, space, wanted, layers_used), known)
        print_report_summary(write_report(folder, opened))
    finally:
        if storage is not None:
            close_storage(storage)


def _judged(
    references: Mapping[str, Architecture], accuracy: AccuracyEstimator
) -> tuple[dict[str, Architecture], dict[str, Architecture]]:
    """References that can be judged, and those of which only the published accuracy is known.

    Those that have neither are left out, said in a line.
    """
    penalised = isinstance(accuracy, Int8Penalty)
    if not isinstance(accuracy.fp32 if isinstance(accuracy, Int8Penalty) else accuracy, Predictor):
        return dict(references), {}
    judged: dict[str, Architecture] = {}
    published: dict[str, Architecture] = {}
    for name, architecture in references.items():
        reason = not_covered(architecture)
        top1 = published_top1(name, architecture.resolution) if is_reference(name) else None
        if reason is None:
            judged[name] = architecture
        elif top1 is None or penalised:
            warn(f"{name} is left out: {reason}")
        else:
            warn(f"{name} is shown with its published accuracy, {top1:g} %: {reason}")
            published[name] = architecture
    return judged, published


def _say_refused(table: LatencyTable, space: SearchSpace, runtime: Runtime) -> None:
    """Name the layers of a space that candidates do without."""
    refused = table.refused(reachable_layer_keys(space))
    if refused:
        warn(
            f"  {runtime.name} ({runtime.precision}) refuses {len(refused):,} layers of the space, e.g. "
            f"{refused[0]}: {table.refusal(refused[0])}; the search goes on without networks that have them"
        )


def _check_task(
    task: Task,
    board: Hardware,
    runtime: Runtime,
    space: SearchSpace,
    references: Iterable[Architecture],
    foreign: Sequence[str],
) -> None:
    """Refuse a search for a task that its head, its runtime or its references do not suit.

    Raises:
        InputError: before anything is measured.
    """
    check_timed_from_here(task, board)
    runtime.check_task(task)
    check_space(task, space)
    for each in references:
        TaskNetwork(each, task)
    if foreign:
        raise InputError(
            f"{foreign[0]} is timed as a classifier, which says nothing beside networks for {task.name}: "
            "leave it out of search.references"
        )
    warn(f"  mind: accuracies are of classification, a proxy for {task.name}; latencies are of whole models")


def _start(name: str, space: SearchSpace, resolution: int | None) -> tuple[str, Architecture]:
    """The network that NetAdapt is to begin with, by name or file.

    Raises:
        InputError: if it is none that can be shrunk.
    """
    try:
        ((found, network),) = reference_architectures(space, [name], resolution).items()
    except UnknownReferenceError as error:
        raise InputError(
            f"search.refine_from={name} is neither the id of a network on the front, nor a block table's "
            f"file, nor a reference: {error}"
        ) from None
    try:
        space.encode(network)
    except NotInSpaceError as error:
        raise InputError(
            f"search.refine_from={name} is not in the space {space.name!r}, within which NetAdapt goes step "
            f"by step: {error}"
        ) from None
    return found, network


def _budget_ms(
    budget: LatencyBudget,
    table: LatencyTable,
    space: SearchSpace,
    timed: Mapping[str, float],
    limits: Limits,
) -> float | None:
    """The most milliseconds a network may take, None without a budget.

    Raises:
        BudgetError: if nothing in the space meets it: said before anything is written.
    """
    budget_ms = budget.bound_ms(table, timed.get(budget.name) if budget.name else None)
    if budget_ms is None and not limits.any:
        return None
    fastest_ms = Neighbourhood(space, table, None, limits).fastest().latency.latency_ms
    if budget_ms is not None and fastest_ms > budget_ms:
        margin = budget.margin_on(table)
        asked_ms = budget_ms / (1 - margin)
        kept = f" ({100 * margin:.3g} % of it kept free, search.budget_margin)" if margin else ""
        raise BudgetError(
            f"nothing in the space {space.name!r} meets search.budget_ms={asked_ms:.6g}{kept}: the fastest "
            f"network takes {latency_text(fastest_ms)}"
        )
    return budget_ms


def _journal(folder: Path) -> Path:
    """Rounds of networks that torchvision or timm build, until what follows from them is saved."""
    return folder / "torchvision.jsonl"


def _recorded(storage: optuna.storages.BaseStorage | None, name: str) -> dict[str, float]:
    """Latencies of such networks that a study knows already, by name; a budget must not change."""
    if storage is None or name not in optuna.get_all_study_names(storage):
        return {}
    return recorded(optuna.load_study(study_name=name, storage=storage))


def _time_foreign(
    foreign: Sequence[TorchvisionReference],
    known: Mapping[str, float],
    table: LatencyTable,
    latencies: LatencySource,
    folder: Path,
) -> dict[str, float]:
    """Latencies of networks that torchvision or timm build, those that are known as they are."""
    missing = [each for each in foreign if each.name not in known]
    if not missing:
        return {each.name: known[each.name] for each in foreign}
    console.print(f"timing {', '.join(each.name for each in missing)} end to end")
    journal, rounds, seed = _journal(folder), latencies.rounds, latencies.effort.seed
    found = measure_end_to_end(missing, table, latencies.runtime, journal, rounds, seed)
    return {each.name: known.get(each.name) or found[each.name] for each in foreign}


def _check_card(
    card: Card | None, table: LatencyTable, board: Hardware, runtime: Runtime, required: bool
) -> None:
    """Say how far the table can be trusted.

    Raises:
        InputError: if a good card is required and there is none.
    """
    if table.header.statistic == "estimate":
        problem, remedy = "is estimated, nothing was measured on the board", board.how_to_measure(runtime)
        if runtime.name not in (stands_for := table.header.runtime.split("/")):
            problem += f"; it stands for {', '.join(stands_for)}, not for {runtime.name}"
    else:
        problem = card_problem(card, table)
        if card is not None and not problem:
            console.print(f"  {card.headline}")
            return
        remedy = profile_command(board.name, runtime, "validate")
    if required:
        raise InputError(f"search.require_validation=true, but the latency table {problem}; run: {remedy}")
    warn(f"  warning: the latency table {problem}; better: {remedy}")


def _check_agreement(
    opened: optuna.Study, table: LatencyTable, latencies: LatencySource, folder: Path
) -> None:
    """Compare this machine, once since it started, with the one that gave a shared study its latencies.

    Raises:
        StaleTableError: if they differ.
    """
    mark = f"agrees:{boot_id() or secrets.token_hex(8)}"
    if mark in opened.user_attrs:
        return
    try:
        found = latencies.agreement(table, _carried_networks(opened), folder)
    except MeasurementError as error:
        warn(f"warning: whether the study's latencies hold for this machine could not be told: {error}")
        return
    if found is not None:
        console.print(f"  {found}")
        opened.set_user_attr(mark, str(found))


def _carried_networks(opened: optuna.Study) -> list[NetworkRecord]:
    """Networks that were measured for the latencies that a study carries."""
    text = networks_of(opened)
    return [] if text is None else read_networks(Gate(f"the study {opened.study_name!r}", StorageError), text)


def _screen(
    space: SearchSpace,
    predictor: Predictor,
    table: LatencyTable,
    latencies: LatencySource | None,
    settings: SearchSettings,
    budget_ms: float | None,
    limits: Limits,
) -> tuple[LatencyTable, list[Parameters]]:
    """Members of the space to begin with: the front of very many networks, scored in batches.

    Args:
        space: where they come from.
        predictor: of their accuracy.
        table: of their latency.
        latencies: measures the layers of the front that are predicted so far, None to leave them so.
        settings: how many networks to score.
        budget_ms: slower ones do not count.
        limits: nor do larger ones.

    Returns:
        The table with what was measured, and the front, slowest first: at most half of the trials wanted.
    """
    passes = _FRONT_PASSES if latencies else 1
    networks = min(settings.screen, _SCREENED_SHARE * space.size)
    for number in range(passes):
        scorer = BatchScorer(space, predictor, layer_latency(table, limits))
        found = screen(scorer, budget_ms or math.inf, settings.caution, networks, settings.seed, limits)
        console.print(f"screened {networks:,} networks: {len(found)} are on their front")
        if latencies is None or number == passes - 1:
            break
        better = _measured(latencies, table, [space.build(each) for each in found])
        if better is table:
            break
        table = better
    return table, evenly_spread(found, max(1, settings.trials // 2))


def _refine(
    opened: optuna.Study,
    problem: Problem,
    references: Mapping[str, Architecture],
    settings: SearchSettings,
) -> None:
    """Shrink a network of the study to a latency; every network on the way becomes a trial."""
    target_ms = settings.refine_to_ms or problem.budget_ms
    assert target_ms is not None
    front = {each.label: each.architecture for each in report_of(opened, importances=False).front}
    found: dict[str, Architecture | None] = {**front, **references}
    start = found.get(settings.refine_from or next(reversed(front)))
    if start is None:
        raise InputError(
            f"search.refine_from={settings.refine_from} is neither a reference nor on the front "
            f"({', '.join(front)})"
        )
    with search_progress(0) as show:
        refinement = refine(opened, problem, start, target_ms, workers=settings.workers, progress=show)
    last = refinement.path[-1]
    console.print(
        f"NetAdapt: {len(refinement.path) - 1} steps to {latency_text(last.latency_ms)}, "
        f"top-1 {last.top1:.2f} %"
        + ("" if refinement.reached else "; the target was not reached, nothing is left to shrink")
    )


def _measure_front(opened: optuna.Study, table: LatencyTable, latencies: LatencySource) -> LatencyTable:
    """Measure the predicted layers of the networks that are going to be recommended."""
    for _ in range(_FRONT_PASSES):
        report = report_of(opened, importances=False)
        networks = [each.architecture for each in report.front if each.architecture]
        better = _measured(latencies, table, networks)
        if better is table:
            break
        table = better
        refused = _refused_networks(report, table)
        _leave_out(opened, {name: f"layer {key}: {table.refusal(key)}" for name, key in refused.items()})
        found = {each.id: table.latency(each) for each in networks if each.id not in refused}
        remeasure(
            opened,
            {
                name: {"latency_ms": each.latency_ms, "latency_source": each.source}
                for name, each in found.items()
            },
        )
    return table


def _refused_networks(report: Report, table: LatencyTable) -> dict[str, LayerKey]:
    """Networks of a report with a layer that the runtime refuses: the first such layer by id."""
    if not table.refused(table.entries):  # else every network of a long study would be built for nothing
        return {}
    networks = {each.id: each.architecture for each in report.networks if each.architecture}
    layers = {name: table.refused(layer_keys(each)) for name, each in networks.items()}
    return {name: keys[0] for name, keys in layers.items() if keys}


def _leave_out(opened: optuna.Study, refused: Mapping[str, str]) -> None:
    """Networks that turned out not to run: no report shows them."""
    if refused:
        name, reason = next(iter(refused.items()))
        others = f" and {len(refused) - 1} others are" if len(refused) > 1 else " is"
        warn(f"{name}{others} left out: the runtime refuses {reason}")
    remeasure(opened, {name: {"refused": reason} for name, reason in refused.items()})


def _time_best(
    opened: optuna.Study,
    table: LatencyTable,
    latencies: LatencySource,
    settings: SearchSettings,
    folder: Path,
) -> dict[str, object] | None:
    """Time the networks that are going to be recommended, and the references, end to end.

    Returns:
        What the report has to know of it; None where nothing could be timed.
    """
    if not settings.end_to_end:
        return None
    report = report_of(opened, importances=False)
    chosen = report.worth_timing(settings.end_to_end)
    try:
        timed = latencies.timed(table, [*chosen.values()], folder, _carried_networks(opened))
    except MeasurementError as error:
        # A search of hours is not lost because the machine was busy at its end.
        warn(f"warning: nothing was timed end to end: {error}")
        return None
    if timed is None:
        return None
    remeasure(
        opened,
        {
            each.record.architecture.id: {
                "latency_ms": each.record.p50_ms,
                "latency_source": "measured",
                "latency_error_ms": each.error_ms,
                "p90_ms": each.record.p90_ms,
                "p99_ms": each.record.p99_ms,
                **({} if each.energy_mj is None else {"energy_mj": each.energy_mj}),
            }
            for each in timed.networks
        },
    )
    _leave_out(opened, {name: f"the whole network: {reason}" for name, reason in timed.refused.items()})
    timed.journal.unlink(missing_ok=True)
    return {
        "trials": len(report.networks) - sum(each.trial < 0 for each in report.networks),
        "networks": len(timed.networks),
        "rounds": timed.conditions.get("rounds"),
        "drift": timed.drift,
        "energy": timed.conditions.get("energy"),
        "percentile": settings.percentile,
    }


def _measured(
    latencies: LatencySource, table: LatencyTable, networks: Sequence[Architecture]
) -> LatencyTable:
    """The table with the layers of these networks measured; as it was where that fails."""
    try:
        return latencies.measured(table, networks)
    except MeasurementError as error:
        # A search of hours is not lost because the machine was busy at its end.
        warn(f"warning: layers of the front stay predicted: {error}")
        return table


if __name__ == "__main__":
    command("search", SearchConfig, main)
