"""The output of commands: progress bars while they work, a summary when they are done."""

from __future__ import annotations

import codecs
import os
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column, Table

from nas.measuring.progress import ProfileProgress
from nas.page.files import ReportFiles, answer_rows, next_command, summary_rows
from nas.quantities import latency_text
from search_spaces.errors import printable
from search_spaces.gate import Gate

if TYPE_CHECKING:  # a report is rebuilt without what searches and measures
    from nas.latency.table import LatencyTable
    from nas.study.loop import Progress as SearchProgress

# A log has no edge at which lines must break; rich would take it for a terminal of 80 columns.
_LOG_WIDTH = 160
_NARROW = 110
_PLAIN = {"…": "...", "−": "-", "–": "-", "×": "x", "━": "-", "╸": "-", "╺": "-", "→": "->"}


class PrintableConsole(Console):
    """A console on which texts of others (boards, studies, file names) move no cursor and set no title."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See ``rich.console.Console``: all texts pass here, also those of tables and bars."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text, kept="\n\t"), segment.style)

    def on_broken_pipe(self) -> None:
        """Let the command say so, which has files to close."""
        raise BrokenPipeError


def _knows_width() -> bool:
    """True if there is an edge at which lines break; some terminals say that they have no columns."""
    typed = os.environ.get("COLUMNS", "")
    return int(typed) > 0 if typed.isdecimal() else bool(sys.stdout and sys.stdout.isatty())


console = PrintableConsole(
    highlight=False,
    soft_wrap=True,
    # Names of files, boards and studies may have brackets in them, and words between colons.
    markup=False,
    emoji=False,
    width=None if _knows_width() else _LOG_WIDTH,
)


def print_in_any_locale() -> None:
    """Let what an ASCII or Latin-1 terminal lacks be replaced by what it has, instead of failing.

    Where input, output or errors are closed, files of ours would come to stand in their place: what a library
    prints would go into a study.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    codecs.register_error("plain", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def warn(text: str) -> None:
    """Say on a line of its own what the user should mind."""
    console.print(text, style="yellow")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(each) or unicodedata.normalize("NFKD", each) for each in lacking)
    return "".join(
        each if each.isascii() else "?" for each in plain if not unicodedata.combining(each)
    ), error.end


def progress_bars() -> Progress:
    """Bars with counts, elapsed time and time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def measuring_progress() -> Iterator[ProfileProgress]:
    """Bars for preparing layers and for rounds of measuring."""
    with progress_bars() as bars:
        preparing = bars.add_task("preparing layers", total=None)
        measuring = bars.add_task("measuring rounds", total=None)
        yield ProfileProgress(
            prepared=lambda done, total: bars.update(preparing, completed=done, total=total),
            measured=lambda done, wanted: bars.update(measuring, completed=done, total=wanted),
        )


@contextmanager
def search_progress(trials: int) -> Iterator[Callable[[SearchProgress], None]]:
    """A bar of completed trials that says how fast they come and what was found so far."""
    # What matters most comes first: the end of the line is cut off where the terminal is narrow.
    text = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
    )
    with Progress(BarColumn(10), TimeElapsedColumn(), text, console=console) as bars:
        task = bars.add_task("evaluating references", total=trials)

        def show(progress: SearchProgress) -> None:
            best = progress.best
            parts = [f"{progress.done:,}/{progress.total:,}"]
            if best is not None:
                unit = "" if best.source == "proxy" else " %"
                spread = f" ± {best.deviation:.2f}" if best.deviation else ""
                parts.append(f"best {best.top1:.2f}{spread}{unit} at {latency_text(best.latency_ms)}")
            if progress.seconds_left is not None:
                parts.append(f"{progress.seconds_left:.0f} s left")
            parts += [
                f"{progress.trials_per_second:.3g}/s",
                f"hypervolume {progress.hypervolume:.3f}",
            ]
            bars.update(task, completed=progress.done, description=", ".join(parts))

        yield show


def print_columns(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in which no word is broken; on terminals too narrow for that, a paragraph a row.

    Args:
        title: what it is about.
        heads: of the columns; the first names the rows.
        rows: of cells.
    """
    words = [[word for cell in column for word in cell.split()] for column in zip(heads, *rows, strict=True)]
    longest = [max(map(len, column), default=0) for column in words]
    table = Table(title=title, title_justify="left")
    # Rich narrows the widest columns, whatever the length of their words.
    whole = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    borders = 3 * len(heads) + 1
    narrow = sum(whole) + borders > console.width
    if narrow and sum(longest) + borders > console.width:
        console.print(title)
        for name, *cells in rows:
            facts = ", ".join(f"{head} {cell}" for head, cell in zip(heads[1:], cells, strict=True))
            print_wrapped(f"{name}: {facts}")
        return
    for head, width in zip(heads, longest, strict=True):
        table.add_column(head, width=width if narrow else None)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_wrapped(text: str) -> None:
    """Print lines that end between words, before the terminal would end them within one."""
    lines = textwrap.TextWrapper(
        console.width, subsequent_indent=" " * 4, break_long_words=False, break_on_hyphens=False
    )
    console.print(lines.fill(text))


def print_summary(title: str, rows: Mapping[str, str], next_command: str) -> None:
    """Print the end of a command: what it found, where the files are, and what to type next.

    Args:
        title: what was done.
        rows: what was found, by name.
        next_command: to type next; none where empty.
    """
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(printable(name), printable(value, kept="\n"))
    console.print(table)
    # Below the table and on one line, to be copied.
    console.print(f"next: {next_command}")


def print_table_summary(table: LatencyTable, folder: Path, next_step: str) -> None:
    """Print what a profile found and where it lies.

    Args:
        table: the table.
        folder: where it lies.
        next_step: the command to type next.
    """
    counts = dict.fromkeys(("measured", "predicted", "estimated", "refused"), 0)
    for entry in table.entries.values():
        counts[entry.source] += 1
    calibration = table.header.calibration
    rows = {
        "device": table.header.title,
        "layers": ", ".join(f"{count:,} {source}" for source, count in counts.items() if count),
    }
    if refused := table.refused(table.entries):
        rows["refused"] = (
            f"{len(refused):,} layers, which no network of a search will have, e.g. {refused[0]}: "
            f"{table.refusal(refused[0])}"
        )
    left: dict[str, list[str]] = {}
    gate = Gate("the latency table")
    for session in table.header.sessions:
        for name, found in gate.mapping(session.get("undelegated", {}), "undelegated").items():
            left[name] = [gate.string("an operator", each) for each in gate.sequence(found, "operators")]
    if left:
        kinds = ", ".join(sorted({kind for each in left.values() for kind in each}))
        rows["not accelerated"] = f"operators in {len(left):,} layers and networks: {kinds}"
    if table.header.gap_filling:
        error = table.header.gap_filling["mean_error"]
        rows["predicted layers"] = f"{error:.1%} mean error in cross-validation"
    if calibration is not None:
        rows["sums of layers"] = str(calibration.uncorrected)
        rows["calibrated, left out"] = str(calibration.left_out)
    rows["files"] = str(folder)
    print_summary("latency table", rows, next_step)


def print_report_summary(files: ReportFiles) -> None:
    """Print what a study holds beside each reference, and where the files are."""
    report = files.report
    if report.answers:
        if console.width < _NARROW:
            # Four columns would break names and numbers in the middle.
            for name, latency, gain, saving in answer_rows(report):
                print_wrapped(f"{name}: {latency}")
                print_wrapped(f"  at its latency: {gain}")
                print_wrapped(f"  at its accuracy: {saving}")
            print_summary(report.name, summary_rows(files), next_command(files))
            return
        beside = Table("beside", "its latency", "at its latency", "at its accuracy")
        for column in beside.columns:
            column.overflow = "fold"
        beside.columns[0].no_wrap = True
        for row in answer_rows(report):
            beside.add_row(*row)
        console.print(beside)
    print_summary(report.name, summary_rows(files), next_command(files))
