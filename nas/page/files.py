"""The files of a report, in the folder of its study.

files = write_report(Path("results/digits"), study)
print(files.html)

report.html              the page, works offline
summary.md               the same in a few lines
pareto.png, pareto.svg   for papers
pareto.csv               front members and references
labels.txt               names of the classes, where networks were trained
architectures/<id>.yaml  front members and what is named beside references, for `python -m nas.export`
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna

from nas.page import sentences
from nas.page.comparison import equal_budgets
from nas.page.figures import save_pareto_figures
from nas.page.network_result import NetworkResult
from nas.page.reading import report_of
from nas.page.rendering import comparison_page, report_page, summary
from nas.page.report_data import Report
from nas.page.sentences import MIXED_KINDS
from nas.pictures.recognition import LABELS, labels
from nas.quantities import signed
from nas.saving import SaveError, check_output, markdown_text, spreadsheet_cell, within, write_atomically
from nas.shell import file_word, shell_line
from search_spaces.errors import printable

_FILES = ("report.html", "summary.md", "pareto.csv", "pareto.png", "pareto.svg")
# ... and what a search puts beside it.
_FOLDERS = ("architectures", "bundles", "training", "candidates")


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a report lies.

    Attributes:
        report: what it says.
        html: the page.
        summary: Markdown.
        figures: png and svg.
        table: csv of front members and references.
        architectures: folder with a YAML file for each front member and network named beside a reference.
    """

    report: Report
    html: Path
    summary: Path
    figures: tuple[Path, ...]
    table: Path
    architectures: Path


def check_report(folder: Path, setting: str) -> None:
    """Refuse a place for a report before the hours that its study takes.

    Args:
        folder: that its files go to.
        setting: that names it, for the message.

    Raises:
        SaveError: if one of them cannot be written, or would lie elsewhere.
    """
    for path in (folder / name for name in (*_FILES, LABELS)):
        if path.is_dir():
            raise SaveError(f"{path} is a folder, where a report has a file: move it away")
        check_output(path, setting, overwrite=True)
    for name in _FOLDERS:
        within(folder, name)


def write_report(folder: Path, study: optuna.Study) -> ReportFiles:
    """Write all files of a study's report; older ones are replaced.

    Raises:
        ReportError: if no report can be made of the study.
    """
    check_report(folder, "study")
    report = report_of(study)
    # Before anything is written: what cannot be shown leaves the older report as it was.
    page, words, rows = report_page(report), summary(report), pareto_csv(report)
    folder.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(
        report=report,
        html=folder / "report.html",
        summary=folder / "summary.md",
        figures=tuple(save_pareto_figures(report, folder)),
        table=folder / "pareto.csv",
        architectures=within(folder, "architectures"),
    )
    write_atomically(files.html, page)
    write_atomically(files.summary, words)
    write_atomically(files.table, rows)
    if report.provenance.classes:
        write_atomically(folder / LABELS, labels(report.provenance.classes))
    _write_architectures(report, files.architectures)
    return files


def write_comparison(path: Path, first: optuna.Study, second: optuna.Study) -> tuple[Report, Report]:
    """Write one page that compares two studies, and return what it is about.

    Args:
        path: the page.
        first: one study's report.
        second: the other's.

    Raises:
        ReportError: if no report can be made of one of the studies.
    """
    reports = report_of(first), report_of(second)
    write_atomically(path, comparison_page(*reports))
    return reports


def summary_rows(files: ReportFiles) -> dict[str, str]:
    """Rows of the summary that commands end with: what was found, and where the files are."""
    report = files.report
    rows = {
        "latency": report.title or "device unknown",
        "front": f"{len(report.front)} of {len(report.networks):,} networks",
    }
    if sentences.notes(report):
        rows["accuracy"] = " ".join(sentences.notes(report))
    if report.foreign:
        rows["left out"] = f"{report.foreign:,} trials that this program did not make"
    for reason, count in report.failures:
        rows[f"{count:,} failed"] = reason
    if any(answer.mixes_kinds for answer in report.answers):
        rows["mind"] = MIXED_KINDS
    if sentences.published_wins(report):
        rows["better"] = sentences.published_wins(report)
    names = ", ".join(path.name for path in (*files.figures, files.table, files.summary))
    return rows | {
        "page": str(files.html),
        "for papers": f"{names} beside it",
        "architectures": str(files.architectures),
    }


def answer_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """For each reference: its name, its latency, and what was found at its latency and at its accuracy."""
    rows = []
    for answer in report.answers:
        reference, fast, accurate = answer.reference, answer.as_fast, answer.as_accurate
        gain, saving = sentences.gain(answer), sentences.saving(answer)
        if fast and answer.differs(fast):
            gain += f": {sentences.evidence(answer, fast)}"
        elif fast:
            gain += f": {fast.id}, {_accuracy(fast)}"
        if accurate:
            saving += f": {accurate.id}"
        rows.append((reference.label, _latency(reference), gain, saving))
    return rows


def next_command(files: ReportFiles) -> str:
    """The command to type after a report: the export of the most accurate network of the front."""
    found = [each for each in files.report.front if each.kind != "reference" and each.architecture]
    if not found:
        return f"open {file_word(files.html)} in a browser"
    return shell_line(
        "nas.export",
        export__architecture=f"{files.architectures / found[-1].id}.yaml",
        export__task=files.report.task or None,
        export__task_classes=files.report.task_classes,
    )


def comparison_rows(first: Report, second: Report) -> dict[str, str]:
    """Rows of the summary of a comparison: the best of each study at equal budgets."""
    rows = {f"{report.name} on": report.title or "device unknown" for report in (first, second)}
    for row in equal_budgets(first, second):
        one, other = row.best
        if one and other:
            rows[f"within {row.budget_ms:g} ms"] = (
                f"{_accuracy(one)} and {_accuracy(other)}: {signed(row.points or 0.0, 1)} points"
            )
    return rows


def pareto_csv(report: Report) -> str:
    """One line for each front member and reference, by latency."""
    rows = report.frame(report.front_and_references).drop(columns="on_front")
    cells = rows.astype(object).where(rows.notna(), "").map(_cell)
    text: str = cells.to_csv(index=False, lineterminator="\n")
    return text


def _write_architectures(report: Report, folder: Path) -> None:
    named = [each for answer in report.answers for each in (answer.as_fast, answer.as_accurate) if each]
    wanted = {each.id: each for each in (*report.front, *named) if each.architecture is not None}
    # Of an older front; other files stay.
    for path in folder.glob("[0-9a-f]" * 10 + ".yaml"):
        if path.stem not in wanted:
            path.unlink()
    whole = f" of the whole model for {report.task}" if report.task else ""
    for network in wanted.values():
        assert network.architecture is not None
        header = [
            f"{network.label}, found by the study {report.name}" if not network.name else network.name,
            f"top-1 {_accuracy(network)}; latency {_latency(network)}{whole}",
            f"{network.macs / 1e6:,.1f} M multiply-accumulates, {network.parameters / 1e6:.2f} M parameters",
            report.title,
        ]
        comments = "".join(f"# {printable(' '.join(line.split()))}\n" for line in header if line)
        write_atomically(folder / f"{network.id}.yaml", comments + network.architecture.to_yaml())


def _cell(value: object) -> object:
    if isinstance(value, str):
        return spreadsheet_cell(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def _accuracy(network: NetworkResult) -> str:
    return f"{network.accuracy} ({markdown_text(network.accuracy_source)})"


def _latency(network: NetworkResult) -> str:
    return f"{network.latency} ({markdown_text(network.latency_source)})"
