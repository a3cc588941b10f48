"""Before the trials: latencies, how far they can be trusted, the budget, the networks to try first."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

import optuna
from optuna.storages import BaseStorage

from nas.accuracy.imagenet import Predictor
from nas.console import console, warn
from nas.foreign.timing import check_measurable
from nas.latency.end_to_end import level_links
from nas.latency.provision import profile_command
from nas.latency.sessions import networks_text
from nas.latency.source import LatencySource
from nas.latency.table import LatencyTable
from nas.latency.validation import Card, card_problem, load_card
from nas.measuring.conditions import boot_id
from nas.measuring.rounds import MeasurementError
from nas.quantities import latency_text
from nas.searching.provenance import provenance
from nas.searching.request import SearchRequest
from nas.searching.timing import FRONT_PASSES, carried_networks, foreign_journal, measured, time_foreign
from nas.spread import evenly_spread
from nas.study.neighbourhood import BudgetError, Neighbourhood
from nas.study.problem import Problem
from nas.study.provenance import Provenance
from nas.study.published import publish, published_latencies_ms
from nas.study.scorer import BatchScorer, layer_latency
from nas.study.screening import screen
from nas.study.storage import open_study, table_of
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.layers import reachable_layer_keys
from search_spaces.space import SearchSpace
from search_spaces.stage import Parameters

# Screening more networks than several times a space has members finds nothing new.
_SCREENED_SHARE = 4


@dataclass(frozen=True, slots=True)
class Preparation:
    """The latencies, the budget and the networks that a search begins with.

    Attributes:
        table: the latencies of its networks.
        card: how far the table can be trusted, None where nobody looked.
        budget_ms: the most milliseconds a network may take, None without a budget.
        judged: references to evaluate beside the candidates, by name.
        published: references of which only the published accuracy is known.
        first: members of the space to propose first.
        foreign_ms: latencies of networks that torchvision or timm build, as far as the budget wanted them.
        goes_on: whether the study carries its layers already.
    """

    table: LatencyTable
    card: Card | None
    budget_ms: float | None
    judged: Mapping[str, Architecture]
    published: Mapping[str, Architecture]
    first: list[Parameters]
    foreign_ms: dict[str, float]
    goes_on: bool

    def problem(self, request: SearchRequest) -> Problem:
        """The problem that the search solves."""
        return Problem(
            request.space,
            request.objective,
            request.source.estimator,
            self.table,
            self.judged,
            self.budget_ms,
            request.limits,
        )

    def provenance(self, request: SearchRequest) -> Provenance:
        """See :func:`nas.searching.provenance.provenance`."""
        return provenance(
            request.config, self.table, self.card, request.budget, self.budget_ms, request.source
        )


def prepare(request: SearchRequest, storage: BaseStorage | None) -> Preparation:
    """Measure what is missing, and refuse what the latencies do not allow.

    Args:
        request: what was asked for.
        storage: of the study, None where there is none yet: nothing is made on the disk for it.

    Raises:
        InputError: if the search cannot be done with these latencies.
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
    """
    latencies, runtime = request.latencies, request.latencies.runtime
    name = request.config.study.name
    carried = table_of(storage, name) if storage is not None else None
    table = latencies.table(request.space, request.extra, carried)
    table = latencies.for_task(table, request.task, request.space, request.extra, carried)
    console.print(f"latency: {table.header.title}")
    predictor = request.source.batch_predictor
    if runtime.precision == "int8" and predictor:
        warn(
            "  mind: accuracies are those of fp32; what quantising costs is not predicted "
            "(accuracy.int8_penalty, or accuracy=train to measure it)"
        )
    judged, published = table.runnable(request.judged, warn), table.runnable(request.published, warn)
    _say_refused(table, request.space)
    check_measurable(request.foreign, table, runtime)
    card = load_card(latencies.folder)
    _check_card(card, table, latencies, request.settings.require_validation)
    foreign_ms: dict[str, float] = {}
    if request.budget.foreign is not None:
        foreign_ms = time_foreign(request, table, _recorded(storage, name))
    budget_ms = _budget_ms(request, table, foreign_ms)
    if margin := budget_ms and request.budget.margin_on(table):
        console.print(
            f"budget: {latency_text(budget_ms)}, {100 * margin:.3g} % of it kept free"
            + ("" if request.budget.margin else " for the error of the estimate")
            + " (search.budget_margin)"
        )
    first: list[Parameters] = []
    if request.settings.screen and predictor:
        # A study that was begun keeps its table; so do machines that share one.
        measuring = None if request.is_shared or carried is not None else latencies
        table, first = _screen(request, predictor, table, measuring, budget_ms)
    return Preparation(
        table, card, budget_ms, judged, published, first, foreign_ms, goes_on=carried is not None
    )


def begin(
    request: SearchRequest, prepared: Preparation, storage: BaseStorage
) -> tuple[optuna.Study, Preparation]:
    """The study, begun or gone on with, and what it goes by.

    Args:
        request: what was asked for.
        prepared: from :func:`prepare`; of machines that begin together the first gives the table.
        storage: where it lies.

    Raises:
        nas.study.storage.StudyMismatchError: if it was begun with other settings.
        nas.latency.provision.StaleTableError: if its latencies do not hold for this machine.
    """
    name, latencies = request.config.study.name, request.latencies
    study = open_study(
        storage,
        name,
        request.setting(prepared.table, networks_text(level_links(latencies.networks()))),
        prepared.provenance(request),
    )
    if not prepared.goes_on and (begun_elsewhere := table_of(storage, name)) is not None:
        # Of machines that began it together one has given the layers.
        table = latencies.table(request.space, request.extra, begun_elsewhere)
        budget_ms = _budget_ms(request, table, prepared.foreign_ms)
        prepared = replace(prepared, table=table, budget_ms=budget_ms)
    if prepared.foreign_ms:
        publish(study, request.foreign, prepared.foreign_ms)
        foreign_journal(request.folder).unlink(missing_ok=True)
    if request.is_shared:
        _check_agreement(study, prepared.table, request)
    else:
        carried_networks(study)  # damaged ones are refused now, not after the trials
    return study, prepared


def _say_refused(table: LatencyTable, space: SearchSpace) -> None:
    """Name the layers of a space that candidates do without."""
    refused = table.refused(reachable_layer_keys(space))
    if refused:
        warn(
            f"  {table.header.runtime} ({table.header.precision}) refuses {len(refused):,} layers of the "
            f"space, e.g. {refused[0]}: {table.refusal(refused[0])}; the search goes on without networks "
            "that have them"
        )


def _recorded(storage: BaseStorage | None, name: str) -> dict[str, float]:
    """Latencies of foreign networks that a study knows already, by name; a budget must not change."""
    if storage is None or name not in optuna.get_all_study_names(storage):
        return {}
    return published_latencies_ms(optuna.load_study(study_name=name, storage=storage))


def _budget_ms(request: SearchRequest, table: LatencyTable, foreign_ms: Mapping[str, float]) -> float | None:
    """The most milliseconds a network may take, None without a budget.

    Raises:
        BudgetError: if nothing in the space meets it: said before anything is written.
    """
    budget, space, limits = request.budget, request.space, request.limits
    budget_ms = budget.bound_ms(table, foreign_ms.get(budget.name) if budget.name else None)
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


def _check_card(card: Card | None, table: LatencyTable, latencies: LatencySource, required: bool) -> None:
    """Say how far the table can be trusted.

    Raises:
        InputError: if a good card is required and there is none.
    """
    board, runtime = latencies.board, latencies.runtime
    if table.is_estimate:
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


def _check_agreement(study: optuna.Study, table: LatencyTable, request: SearchRequest) -> None:
    """Compare this machine, once since it started, with the one that gave a shared study its latencies.

    Raises:
        StaleTableError: if they differ.
    """
    mark = f"agrees:{boot_id() or secrets.token_hex(8)}"
    if mark in study.user_attrs:
        return
    try:
        found = request.latencies.agreement(table, carried_networks(study), request.folder)
    except MeasurementError as error:
        warn(f"warning: whether the study's latencies hold for this machine could not be told: {error}")
        return
    if found is not None:
        console.print(f"  {found}")
        study.set_user_attr(mark, str(found))


def _screen(
    request: SearchRequest,
    predictor: Predictor,
    table: LatencyTable,
    latencies: LatencySource | None,
    budget_ms: float | None,
) -> tuple[LatencyTable, list[Parameters]]:
    """Members of the space to begin with: the front of very many networks, scored in batches.

    Args:
        request: the space, how many networks to score, and what they may cost.
        predictor: of their accuracy.
        table: of their latency.
        latencies: measures the layers of the front that are predicted so far, None to leave them so.
        budget_ms: slower ones do not count.

    Returns:
        The table with what was measured, and the front, slowest first: at most half of the trials wanted.
    """
    space, settings, limits = request.space, request.settings, request.limits
    screenings = FRONT_PASSES if latencies else 1
    networks = min(settings.screen, _SCREENED_SHARE * space.size)
    for number in range(screenings):
        scorer = BatchScorer(space, predictor, layer_latency(table, limits))
        found = screen(scorer, budget_ms or math.inf, settings.caution, networks, settings.seed, limits)
        console.print(f"screened {networks:,} networks: {len(found)} are on their front")
        if latencies is None or number == screenings - 1:
            break
        better = measured(latencies, table, [space.build(each) for each in found])
        if better is table:
            break
        table = better
    return table, evenly_spread(found, max(1, settings.trials // 2))
