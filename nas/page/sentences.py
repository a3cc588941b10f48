"""The sentences of a report: gains and savings in words, and what accuracies and latencies are worth."""

from __future__ import annotations

from collections.abc import Container, Sequence

from nas.accuracy.recipes import DESCRIPTIONS
from nas.latency.calibration import error_text
from nas.page.network_result import NetworkResult
from nas.page.recommendation import Answer, Gain
from nas.page.report_data import TRAINED, Report
from nas.quantities import latency_text, signed
from nas.study.provenance import LatencyOrigin
from search_spaces.errors import shorten

MIXED_KINDS = (
    "A predicted accuracy is for one recipe of training, a published one for its authors': they are not "
    "compared, as recipes differ by more than networks do."
)


_LATENCY_WORDS = {
    "measured": "the whole network was timed end to end on this hardware, interleaved with the others; the "
    "median is given.",
    "table": "all layers of the network were timed on this hardware, and their sum is calibrated on whole "
    "networks.",
    "predicted": "like table, but at least one layer was not timed: it is predicted from timed layers of the "
    "same hardware.",
    "estimated": "from published latencies of such a board; nothing was measured on this hardware.",
}
_ACCURACY_WORDS = {
    "measured": "trained and validated here.",
    TRAINED: "trained here to the end by the final recipe, and judged on images that training never saw.",
    "predicted": "a model fitted to published trainings says so; nothing was trained here.",
    "supernet": "validated here with the weights that a supernet shares among all networks.",
    "given": "as the table that was given says.",
    "proxy": "none; a training-free score ranks the networks, and says nothing of their accuracy.",
    "published": "as its authors report it, with their training.",
}


def vocabulary(accuracies: Container[str], latencies: Container[str]) -> dict[str, str]:
    """Meanings of the sources of accuracies and of latencies, and of ±."""
    found: dict[str, str] = {}
    for what, words, used in (
        ("Latency", _LATENCY_WORDS, latencies),
        ("Accuracy", _ACCURACY_WORDS, accuracies),
    ):
        for name, text in words.items():
            if name in used:
                found[name] = f"{found.get(name, '')} {what}: {text}".strip()
    found["±"] = (
        "One standard deviation. Of a predicted accuracy: how far the prediction is off for such networks; "
        "of a trained one: what the number of images and the seed leave open. Of a latency: how far whole "
        "networks measured end to end are from what is stated here."
    )
    return found


# What any source means, be it of latencies or of accuracies.
WORDS = vocabulary(_ACCURACY_WORDS, _LATENCY_WORDS)


def gain_text(gained: Gain) -> str:
    """E.g. ``at least +0.7 points``."""
    if gained.deviation is None:
        return f"{signed(gained.points, 1)} {gained.unit}"
    if gained.bound > 0:
        return f"at least {signed(gained.bound, 1)} points"
    return f"{signed(gained.points, 1)} ± {gained.deviation:.1f} points, no sure gain"


def gain(answer: Answer) -> str:
    """The gain at the reference's latency in words, e.g. ``at least +0.7 points``."""
    if answer.as_fast is None:
        return "nothing found is as fast"
    return "not compared" if answer.gained is None else gain_text(answer.gained)


def saving(answer: Answer) -> str:
    """The saving at the reference's accuracy in words, e.g. ``−25 % latency``."""
    if answer.as_accurate is None:
        return "nothing found is as accurate"
    if answer.latency_change is None:
        return "not compared"
    return f"{signed(100 * answer.latency_change, 0)} % latency"


def evidence(answer: Answer, found: NetworkResult) -> str:
    """Which numbers stand behind a gain."""
    reference = answer.reference
    if answer.differs(found):
        return f"{found.accuracy_source} {found.accuracy}; {reference.accuracy_source} {reference.accuracy}"
    kind = found.accuracy_source + (f" for the recipe {answer.recipe}" if answer.recipe else "")
    text = f"{found.accuracy} against {reference.accuracy}, both {kind}"
    if answer.gained and found is answer.as_fast and answer.gained.deviation is not None:
        gained = answer.gained
        text += f": {signed(gained.points, 1)} ± {gained.deviation:.1f}"
        if gained.disappointment >= 0.05:
            text += f" after {gained.disappointment:.1f} for choosing the best of {gained.choices}"
    if reference.published is not None and reference.accuracy_source == "predicted":
        text += f" (published, with its authors' training: {reference.published:g} %)"
    return text


def notes(report: Report) -> tuple[str, ...]:
    """Sentences on what accuracies are worth."""
    notes = (
        task_note(report),
        recipe_note(report),
        judgement_note(report),
        training_note(report),
        scatter_note(report),
        stopped_note(report),
    )
    return tuple(each for each in notes if each)


def task_note(report: Report) -> str:
    """A note on what latencies and accuracies are of, where the task is another than classification."""
    task = report.provenance.task
    if task is None:
        return ""
    if None in (task.classes, task.models, task.error_percent, task.worst_percent):
        return f"Latencies are of whole models for {task.name}, accuracies of classification."
    without = ", boxes neither decoded nor sorted out" if task.name == "detection" else ""
    return (
        f"Latencies are of whole models for {task.name} ({task.classes:,} classes{without}); what the "
        f"table says of them was {task.error_percent:.1f} % off on average, {task.worst_percent:.1f} % at "
        f"worst, on {task.models:,} timed end to end. Accuracies, MACs and parameters are of classification: "
        "a proxy, without the head."
    )


def recipe_note(report: Report) -> str:
    """A sentence on what predicted accuracies are for, empty where there are none."""
    if not report.recipe:
        return ""
    described = DESCRIPTIONS.get(report.recipe, "")
    return f"Predicted accuracies are for the recipe {report.recipe}" + (
        f": {described}." if described else "."
    )


def judgement_note(report: Report) -> str:
    """On how many images trained networks were judged, and what chance would get; empty without any."""
    trained_ones = [each for each in report.networks if each.accuracy_source == TRAINED]
    judged = [each.judgement for each in trained_ones or report.networks if each.judgement]
    if not judged:
        return ""
    best = max(judged, key=lambda each: each.top1)
    note = (
        f"Judged on {best.images:,} images of {_few(report.provenance.classes)}{best.majority:.1f} % of them "
        f"{best.majority_class}: always answering that is chance. The best network has {best.top1:.1f} ± "
        f"{best.deviation:.1f} %, {best.class_mean:.1f} % as the mean of the classes."
    )
    if best.above_chance:
        return note
    return f"{note} That is not above chance: accuracies here tell nothing apart (see dataset.balanced)."


def training_note(report: Report) -> str:
    """A sentence on which networks were trained to the end, empty where none was."""
    count = report.source_counts("accuracy_source").get(TRAINED, 0)
    if not count:
        return ""
    finished = report.provenance.trained
    epochs = finished.recipe.get("epochs") if finished else None
    images = (finished and finished.judged_on) or "images that training never saw"
    return (
        f"{count} networks were trained to the end{f', {epochs} epochs each' if epochs else ''}, and "
        f"judged on {images}: these accuracies are called {TRAINED}, and "
        "the front consists of these networks."
    )


def scatter_note(report: Report) -> str:
    """A note on how accuracies scatter with the seed of training, empty where nobody knows."""
    if not report.seed_scatter:
        return ""
    return (
        f"Trained again with other seeds, networks of the front scatter by {report.seed_scatter:.2f} "
        "points; the ± of measured accuracies holds that beside what the number of images leaves open."
    )


def stopped_note(report: Report) -> str:
    """A note on trainings that were stopped on their way, empty if none was."""
    if not report.stopped:
        return ""
    return (
        f"{report.stopped:,} candidates more were stopped on their way, as behind most others in accuracy "
        "and latency after as many epochs."
    )


def published_wins(report: Report) -> str:
    """Which published networks have more than what was found at their latency; empty if none has.

    Recipes differ, so this compares no architectures; but whoever takes the published weights has them.
    """
    found = [
        f"{answer.reference.label} ({answer.reference.accuracy} against {answer.as_fast.accuracy})"
        for answer in report.answers
        if answer.as_fast
        and answer.reference.accuracy_source == "published"
        and answer.as_fast.accuracy_source != "proxy"
        and answer.reference.top1 > answer.as_fast.top1
    ]
    if not found:
        return ""
    return (
        "Published networks that have more, by recipes of their own, than anything found at their "
        f"latency: {'; '.join(found)}."
    )


def margin_note(report: Report) -> str:
    """A note on a budget of which a share is kept free; empty where none is."""
    margin = report.provenance.budget_margin
    if not margin or report.budget_ms is None:
        return ""
    return f"{latency_text(report.budget_ms / (1 - margin))} less {100 * margin:.3g} % kept free"


def accuracy_label(report: Report) -> str:
    """The name of this study's accuracies, for axes and columns."""
    scored = any(network.accuracy_source == "proxy" for network in report.networks)
    return "training-free score" if scored else "top-1 accuracy in %"


def _few(classes: Sequence[str]) -> str:
    if not classes:
        return "all classes, "
    return f"{len(classes)} classes ({shorten(', '.join(classes), 80)}), "


def extent(report: Report) -> str:
    """A line on how much was tried and what it was to keep to."""
    budget = "no latency budget"
    if report.bound_ms is not None:
        margin = f" ({margin_note(report)})" if report.provenance.budget_margin else ""
        budget = f"budget {latency_text(report.bound_ms)}{margin}"
    networks = "1 network" if len(report.front) == 1 else f"{len(report.front):,} networks"
    return f"{len(report.candidates):,} candidates, {networks} on the front, {budget}."


def remarks(report: Report) -> tuple[str, ...]:
    """Everything to be said beside the answers."""
    mixed = MIXED_KINDS if any(answer.mixes_kinds for answer in report.answers) else ""
    return tuple(each for each in (*notes(report), mixed, published_wins(report)) if each)


def front_note(report: Report) -> str:
    """A note on which networks can be on the front at all, empty where all can."""
    timed = all(network.latency_source == "measured" for network in report.front)
    if not report.front or not timed or len(report.source_counts("latency_source")) == 1:
        return ""
    return f"Only networks timed end to end are on the front of {report.name}."


def caution_note(report: Report) -> str:
    """A note on the uncertainty that the search took off an accuracy, empty where nothing was."""
    if not report.caution or not any(network.deviation for network in report.networks):
        return ""
    plural = "" if abs(report.caution - 1) < 0.005 else "s"
    return (
        f"The front of {report.name} goes by accuracy less {report.caution:.2g} standard deviation{plural}, "
        "as its search did, so the most accurate points need not be on it."
    )


def third_note(report: Report) -> str:
    """A note on the third objective besides accuracy and latency, empty where there is none."""
    if report.third is None:
        return ""
    return (
        f"The front of {report.name} is in three objectives, the third is {report.third.replace('_', ' ')}: "
        "choose what accuracy is drawn against."
    )


def verdict(latency: LatencyOrigin) -> str:
    """A sentence on the error of whole networks' latencies, from the provenance of a latency."""
    fresh, left_out = latency.card.calibrated, latency.calibration.left_out
    for errors, where in ((fresh, "networks it never saw"), (left_out, "networks left out one by one")):
        if errors:
            return (
                f"On {errors.networks} {where}, the table is off by {error_text('mape', errors.mape)} on "
                f"average; {error_text('within_5_percent', errors.within_5_percent)} of them are within 5 %."
            )
    estimated = latency.error_percent.get("estimated")
    if estimated is not None:
        return (
            "Nothing was measured on this hardware: latencies are estimated from published ones. Their ± is "
            f"{estimated:.2g} %, by how much the estimate was off for published networks left out of its fit."
        )
    return "Nobody knows: this table was never compared with networks measured end to end."
