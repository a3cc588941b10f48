"""What commands print: progress bars while they work, a summary when they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from nas.engine.study import Progress as SearchProgress
from nas.latency.profiling import ProfileProgress
from nas.latency.table import LatencyTable
from nas.reporting.writer import ReportFiles, summary_rows

console = Console(highlight=False, soft_wrap=True)


def progress_bars() -> Progress:
    """Bars with counts, elapsed time and time left."""
    return Progress(
        TextColumn("{task.description}"),
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
    columns = (TextColumn("searching"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("evaluating references", total=trials)

        def show(progress: SearchProgress) -> None:
            best = progress.best
            parts = [
                f"{progress.done:,}/{progress.total:,} trials",
                f"{progress.trials_per_second:.3g}/s",
                f"{progress.feasible_share:.0%} feasible",
                f"hypervolume {progress.hypervolume:.3f}",
            ]
            if best is not None:
                parts.append(f"best {best.top1:.2f} % at {best.latency_ms:.2f} ms")
            if progress.seconds_left is not None:
                parts.append(f"{progress.seconds_left:.0f} s left")
            bars.update(task, completed=progress.done, description=", ".join(parts))

        yield show


def summary_table(title: str, rows: dict[str, str]) -> Table:
    """Two columns: what, and its value."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def print_table_summary(table: LatencyTable, folder: Path, next_command: str) -> None:
    """What a profile found and where it lies."""
    counts = dict.fromkeys(("measured", "predicted", "estimated"), 0)
    for entry in table.entries.values():
        counts[entry.source] += 1
    calibration = table.header.calibration
    rows = {
        "device": table.header.title,
        "layers": ", ".join(f"{count:,} {source}" for source, count in counts.items() if count),
    }
    if table.header.gap_filling:
        error = table.header.gap_filling["mean_error"]
        rows["predicted layers"] = f"{error:.1%} mean error in cross-validation"
    if calibration is not None:
        rows["sums of layers"] = str(calibration.uncorrected)
        rows["calibrated, left out"] = str(calibration.left_out)
    rows["files"] = str(folder)
    rows["next"] = next_command
    console.print(summary_table("latency table", rows))


def print_report_summary(files: ReportFiles) -> None:
    """What a search found beside each reference, and where the files are."""
    rows = {"latency": files.report.title, **summary_rows(files)}
    console.print(summary_table(files.report.name, rows))
