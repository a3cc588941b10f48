import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial

from nas.accuracy.source import Judgement
from nas.page import sentences
from nas.page.files import pareto_csv
from nas.page.importances import parameter_importances
from nas.page.network_result import NetworkResult
from nas.page.reading import ReportError, hypervolume_over_trials, read_study, report_of
from nas.page.rendering import summary
from nas.page.report_data import COLUMNS
from nas.study.loop import Sampling
from nas.study.objective import Objective, budget, mnasnet, pareto
from nas.study.pareto import hypervolume
from nas.study.storage import StudySetting, close_storage, open_storage, open_study
from nas.study.trial import record_scatter
from search_spaces.errors import InputError
from search_spaces.references import reference
from tests.cases import architecture_of, small_space
from tests.page.report_cases import BUDGET_MS, REFERENCES, made_up_study, network, report, writable


def test_answers_name_the_best_as_fast_and_the_fastest_as_accurate() -> None:
    slow, fast, exact = network(76.0, 20.0, 1), network(75.0, 10.0, 2), network(75.0, 12.0, 3)
    (answer,) = report(slow, fast, exact, network(75.5, 16.0, 4, "r")).answers
    assert (answer.as_fast, answer.as_accurate) == (fast, slow)
    assert sentences.gain(answer) == "−0.5 points"
    assert sentences.saving(answer) == "+25 % latency"


def test_answers_say_when_nothing_is_as_fast_or_as_accurate() -> None:
    (answer,) = report(network(70.0, 20.0, 1), network(75.0, 10.0, 2, "r")).answers
    assert answer.as_fast is None
    assert answer.as_accurate is None
    assert sentences.gain(answer) == "nothing found is as fast"
    assert sentences.saving(answer) == "nothing found is as accurate"


def test_the_same_network_is_no_gain_and_no_loss() -> None:
    (answer,) = report(network(75.0, 10.0, 1), network(75.0, 10.0, 2, "r")).answers
    assert (sentences.gain(answer), sentences.saving(answer)) == ("±0.0 points", "±0 % latency")


def test_the_reference_that_gave_the_budget_is_answered_first() -> None:
    references = [network(70.0, 1.0, 1, "fast"), network(75.0, 2.0, 2, "budget")]
    answers = report(*references, provenance={"budget_name": "budget"}).answers
    assert [answer.reference.name for answer in answers] == ["budget", "fast"]


def test_front_keeps_to_the_budget_and_goes_by_the_cautious_accuracy() -> None:
    sure, unsure = network(75.0, 10.0, 1), replace(network(75.5, 10.0, 2), caution=3.0)
    beyond, inside = network(90.0, 31.0, 3, "beyond"), network(80.0, 30.0, 4, "inside")
    found = report(beyond, unsure, inside, sure, budget_ms=30.0)
    assert found.front == (sure, inside)
    assert report(beyond, inside).front == (inside, beyond)


def _timed(number: int, top1: float, latency_ms: float, name: str | None = None) -> NetworkResult:
    return replace(network(top1, latency_ms, number, name), latency_source="measured", p90_ms=latency_ms + 1)


def test_only_what_was_timed_end_to_end_is_recommended() -> None:
    lucky, one, two = network(78.0, 9.0, 1), _timed(2, 76.0, 9.5), _timed(3, 77.0, 10.5)
    budget = _timed(4, 75.0, 10.0, "budget")
    provenance = {"budget_name": "budget", "end_to_end": {"trials": 4, "percentile": 50}}
    found = report(lucky, one, two, budget, budget_ms=9.8, provenance=provenance)
    # The table called `lucky` the best; it was not timed. The budget is what its reference took.
    assert found.bound_ms == 10.0
    assert found.front == (one,)
    assert found.answers[0].as_fast == one
    assert found.table_front == (lucky,)
    # Newer trials than what was timed: all count again.
    assert lucky in report(*found.networks, network(1.0, 1.0, 5), budget_ms=9.8, provenance=provenance).front


def test_a_network_above_the_budget_at_the_percentile_that_counts_is_not_recommended() -> None:
    one, two = _timed(1, 76.0, 9.5), _timed(2, 75.0, 8.0)
    by_median = {"end_to_end": {"trials": 2, "percentile": 50}}
    assert report(one, two, budget_ms=10.0, provenance=by_median).front == (two, one)
    by_tail = {"end_to_end": {"trials": 2, "percentile": 90}}
    assert report(one, two, budget_ms=10.0, provenance=by_tail).front == (two,)


def test_what_is_going_to_be_recommended_is_timed() -> None:
    found = [_made_up(number, 50 + number / 10, 5 + number / 10) for number in range(200)]
    references = [replace(network(50.0, 12.05, 200, "r"), id="aaaaaaaaaa")]
    block_table = reference("mobilenet_v2")
    known = report(*(replace(each, network=block_table) for each in (*found, *references)))
    chosen = list(known.worth_timing(20))
    assert len(chosen) < 20 + 8
    assert {"aaaaaaaaaa", found[0].id, found[-1].id, found[70].id, found[69].id} <= set(chosen)


def test_a_third_objective_stays_until_the_end() -> None:
    heavy, light = network(76.0, 10.0, 1), replace(network(75.0, 11.0, 2), macs=1)
    worse = replace(network(74.0, 12.0, 3), macs=2)
    assert report(heavy, light, worse).front == (heavy,)
    assert replace(report(heavy, light, worse), third="macs").front == (heavy, light)
    volumes = hypervolume_over_trials((heavy, light, worse), None, "macs")
    assert [trial for trial, _ in volumes] == [1, 2, 3]
    assert volumes[0][1] < volumes[1][1] == volumes[2][1]


def test_scores_are_no_percentages() -> None:
    one, two = (
        replace(network(top1, 10.0, number, name), accuracy_source="proxy", deviation=None)
        for number, (top1, name) in enumerate(((210.5, None), (180.25, "r")), start=1)
    )
    found = report(one, two)
    assert sentences.accuracy_label(found) == "training-free score"
    (answer,) = found.answers
    assert sentences.gain(answer) == "+30.2 of the score"
    assert "score 210.50 against score 180.25" in sentences.evidence(answer, one)
    assert "%" not in sentences.evidence(answer, one)


def test_a_published_network_that_has_more_is_named() -> None:
    foreign = replace(network(78.5, 12.0, -1, "timm:levit_128"), accuracy_source="published", deviation=None)
    found = report(network(78.4, 11.0, 1), foreign)
    assert "timm:levit_128 (78.50 % against 78.40 ± 0.50 %)" in sentences.published_wins(found)
    assert sentences.published_wins(report(network(78.6, 11.0, 1), foreign)) == ""


def test_a_study_becomes_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "made_up"
    result = made_up_study(folder)
    study = read_study(folder)
    found = report_of(study)
    assert len(found.candidates) == 60
    assert {each.name: each.architecture for each in found.references} == REFERENCES
    for trial, each in zip(study.trials, found.networks, strict=True):
        assert each.architecture == architecture_of(study, trial)
        assert each.architecture is not None
        assert each.architecture.id == each.id
    # The search itself says the same.
    assert found.hypervolume[-1][1] == pytest.approx(result.progress.hypervolume)
    assert [share for _, share in found.hypervolume] == sorted(share for _, share in found.hypervolume)
    best = max((each for each in found.front), key=lambda each: each.top1)
    assert result.progress.best is not None
    assert best.id == result.progress.best.architecture
    assert found.budget_ms == BUDGET_MS


@pytest.mark.parametrize(
    ("objective", "budget_ms"),
    [
        (pareto(caution=1.0), None),
        (pareto("macs"), None),
        (budget(caution=1.0), BUDGET_MS),
        (budget(), None),
        (mnasnet(2.0, caution=1.0), None),
    ],
)
def test_search_and_report_judge_alike(tmp_path: Path, objective: Objective, budget_ms: float | None) -> None:
    """One hypervolume and one lower bound of an accuracy, whatever the values of the trials are."""
    result = made_up_study(tmp_path / "s", 12, objective, budget_ms, Sampling("random"))
    found = report_of(read_study(tmp_path / "s"), importances=False)
    assert found.hypervolume[-1][1] == pytest.approx(result.progress.hypervolume)
    assert 0 < result.progress.hypervolume < 1
    for each in found.networks:
        assert each.judged_top1 == pytest.approx(each.top1 - objective.caution * 0.5)
    best = max(found.front, key=lambda each: each.judged_top1)
    assert result.progress.best is not None
    assert (best.id, best.top1) == (result.progress.best.architecture, result.progress.best.top1)


def test_trials_of_others_are_left_out_and_failures_have_their_reasons(tmp_path: Path) -> None:
    made_up_study(tmp_path / "s", trials=5)
    study = writable(tmp_path / "s")
    study.add_trial(optuna.create_trial(values=[50.0, 3.0]))
    failed = optuna.trial.TrialState.FAIL
    for row in (1, 2):
        study.add_trial(optuna.create_trial(state=failed, user_attrs={"error": f"row {row}: no kernel 9"}))
    found = report_of(study)
    assert len(found.candidates) == 5
    assert (found.foreign, found.failures) == (1, (("no kernel 9", 2),))


def test_a_study_can_be_read_while_a_search_writes_to_it(tmp_path: Path) -> None:
    made_up_study(tmp_path / "s", trials=5)
    storage = open_storage(str(tmp_path / "s" / "study.journal"))
    try:
        assert len(report_of(read_study(tmp_path / "s")).candidates) == 5
    finally:
        close_storage(storage)


def test_a_study_without_provenance_is_reported(tmp_path: Path) -> None:
    made_up_study(tmp_path / "s", trials=5)
    study = writable(tmp_path / "s")
    study.set_user_attr("provenance", {})
    found = report_of(study)
    assert (found.title, found.budget_ms, dict(found.layers)) == ("", None, {})
    assert len(found.answers) == len(REFERENCES)


def made_up_trials(accuracy: Callable[[dict[str, int]], float], count: int = 60) -> list[FrozenTrial]:
    """Trials with a parameter that decides, one that does nothing and one that not all have."""
    choices = optuna.distributions.CategoricalDistribution([0, 1])
    trials = []
    for number in range(count):
        params = {"decides": number % 2, "idle": number // 2 % 2}
        if number % 3:
            params["sometimes"] = number // 4 % 2
        results = {"top1": accuracy(params), "latency_ms": 1.0 + params["idle"]}
        trials.append(
            optuna.create_trial(
                values=list(results.values()),
                params=params,
                distributions=dict.fromkeys(params, choices),
                user_attrs={"kind": "candidate", **results},
            )
        )
    return trials


def test_importances_find_what_decides_even_among_absent_parameters() -> None:
    found = parameter_importances(made_up_trials(lambda params: 70.0 + 5 * params["decides"]))
    assert found[0].parameter == "decides"
    shares = {each.parameter: each for each in found}
    assert set(shares) == {"decides", "idle", "sometimes"}
    assert shares["decides"].accuracy > 0.9
    assert shares["idle"].latency > 0.9


def test_importances_need_trials_and_variation() -> None:
    assert parameter_importances(made_up_trials(lambda params: 70.0, count=10)) == ()
    assert {each.accuracy for each in parameter_importances(made_up_trials(lambda params: 70.0))} == {0.0}


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"has no study\.journal"):
        read_study(tmp_path)
    foreign = optuna.create_study()
    with pytest.raises(ReportError, match="not made by this project"):
        report_of(foreign)
    storage = open_storage(str(tmp_path / "s" / "study.journal"))
    open_study(storage, "s", StudySetting(pareto(), small_space()))
    close_storage(storage)
    with pytest.raises(ReportError, match="no complete trial"):
        report_of(read_study(tmp_path / "s"))
    (tmp_path / "s" / "study.journal").write_text("no journal\nat all\n")
    with pytest.raises(ReportError, match="damaged in line 1: it is no JSON"):
        read_study(tmp_path / "s")


def test_the_hypervolume_over_trials_is_that_of_the_fronts() -> None:
    generator = random.Random(0)
    for _ in range(20):
        networks = [
            _made_up(number, generator.randrange(0, 40), generator.randrange(1, 30)) for number in range(60)
        ]
        losses = np.array([[-each.judged_top1, each.latency_ms] for each in networks])
        corner = np.array([0.0, 20.0])
        steps = dict(hypervolume_over_trials(networks, 20.0, None))
        share = 0.0
        for number in range(len(networks)):
            share = steps.get(number, share)
            assert share == pytest.approx(hypervolume(losses[: number + 1], corner) / (100 * 20.0))


def test_a_front_of_thousands_takes_no_time() -> None:
    networks = [_made_up(number, 0.001 + number / 100, 1.0 + number) for number in range(5_000)]
    start = time.process_time()
    assert len(hypervolume_over_trials(networks, None, None)) == 5_000
    assert time.process_time() - start < 1


def _made_up(trial: int, top1: float, latency_ms: float) -> NetworkResult:
    return replace(network(top1, latency_ms, trial), id=f"{trial:010x}")


def test_chance_is_said_beside_trained_accuracies() -> None:
    assert sentences.judgement_note(report(network(70, 5))) == ""
    labels = [0] * 80 + [1] * 4 + [2] * 4
    names = ("round", "square", "odd")
    lazy, able = (Judgement.of(answers, labels, names) for answers in ([0] * 88, labels))
    found = report(replace(network(lazy.top1, 5), judgement=lazy))
    assert "90.9 % of them round" in sentences.judgement_note(found)
    assert "90.9 ± 3.2 %, 33.3 % as the mean of the classes" in sentences.judgement_note(found)
    assert "not above chance" in sentences.judgement_note(found)
    assert "not above chance" in summary(found)
    better = report(*found.networks, replace(network(100, 6, trial=1), judgement=able))
    assert "above chance" not in sentences.judgement_note(better)
    assert "class_mean" in pareto_csv(better)


def test_networks_trained_to_the_end_are_recommended_alone() -> None:
    brief = network(90, 2, 1)
    trained = [
        replace(each, accuracy_source="trained", judgement=Judgement(each.top1, each.top1, 10, "a", 500))
        for each in (network(80, 2, 2), network(75, 1, 3), network(78, 3, 4, "mobilenet_v2"))
    ]
    found = report(brief, *trained, provenance={"trained": {"trials": 4, "judged_on": "test images"}})
    assert [each.trial for each in found.front] == [3, 2]
    assert "3 networks were trained to the end" in sentences.training_note(found)
    (answer,) = found.answers
    assert answer.as_fast is not None
    assert answer.as_fast.trial == 2
    assert answer.gained is not None
    assert answer.gained.deviation == pytest.approx(0.5 * 2**0.5)
    # A trial later the front is that of the search again.
    later = replace(found, networks=(*found.networks, network(1, 9, 5)))
    assert [each.trial for each in later.front] == [3, 1]


def test_the_scatter_of_seeds_widens_measured_accuracies_alone(tmp_path: Path) -> None:
    made_up_study(tmp_path / "study", 5)
    study = writable(tmp_path / "study")
    record_scatter(study, 3.0, {"a": [70, 73, 76]})
    found = report_of(study, importances=False)
    assert {each.accuracy_source for each in found.networks} == {"predicted"}
    assert all((each.deviation or 0) < 3 for each in found.networks)
    trial = study.get_trials()[0]
    attributes = {**trial.user_attrs, "accuracy_source": "measured", "deviation": 4.0}
    study.add_trial(optuna.trial.create_trial(user_attrs=attributes, values=trial.values, state=trial.state))
    again = report_of(study, importances=False)
    assert again.networks[-1].deviation == pytest.approx(5.0)
    assert "scatter by 3.00 points" in " ".join(sentences.notes(again))


def test_another_task_than_classification_is_named() -> None:
    plain = report(network(70, 5))
    assert (plain.task, sentences.task_note(plain)) == ("", "")
    found = {"name": "detection", "classes": 91, "models": 56, "error_percent": 0.9, "worst_percent": 3.1}
    timed = report(network(70, 5), provenance={"task": found})
    assert (
        "whole models for detection (91 classes, boxes neither decoded nor sorted out)"
        in sentences.task_note(timed)
    )
    assert "0.9 % off on average, 3.1 % at worst, on 56 timed" in sentences.task_note(timed)
    assert "of classification: a proxy" in summary(timed)
    assert timed.task_classes is None
    assert report(network(70, 5), provenance={"task": {**found, "classes": 5}}).task_classes == 5
    for damaged in ({"name": "telepathy"}, {"name": 3}, 7, {"name": "detection", "classes": "many"}):
        with pytest.raises(InputError, match="the study"):
            report(network(70, 5), provenance={"task": damaged})
    short = report(network(70, 5), provenance={"task": {"name": "detection"}})
    assert (
        sentences.task_note(short)
        == "Latencies are of whole models for detection, accuracies of classification."
    )


def test_what_is_above_a_limit_is_not_recommended_be_it_a_reference() -> None:
    large = replace(network(90, 1, 1, "mobilenet_v2"), parameters=9_000_000)
    small = network(70, 2, 2)
    assert report(large, small).front == (large,)
    assert report(large, small, limits={"model_size_mb": 20.0}).front == (small,)


def test_the_frame_holds_numbers_and_what_is_unknown_is_missing(tmp_path: Path) -> None:
    made_up_study(tmp_path / "s")
    found = report_of(read_study(tmp_path / "s"), importances=False)
    frame = found.frame()
    assert list(frame.columns) == [*COLUMNS, "on_front"]
    assert list(frame.index) == [each.trial for each in found.networks]
    assert set(frame[frame.on_front].index) == {each.trial for each in found.front} != set()
    assert frame.macs.sum() == sum(each.macs for each in found.networks)
    assert frame.latency_ms.dtype == "float64"
    assert frame.p99_ms.isna().all()
    assert frame.name.isna().sum() == len(found.candidates)
    best = frame[frame.on_front].nlargest(1, "top1").iloc[0]
    assert best.top1 == max(each.top1 for each in found.front)
    assert list(found.frame(found.front).id) == [each.id for each in found.front]
