"""``python -m nas.report STUDY [OTHER]``: rebuild a study's report, or compare two studies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nas.command import command
from nas.console import print_report_summary, print_summary, warn
from nas.page.files import comparison_rows, write_comparison, write_report
from nas.page.reading import ReportError, read_study
from nas.saving import check_output
from nas.shell import file_word
from search_spaces.gate import check_database

# Folders that need not be called by their keys: STUDY [OTHER].
STUDIES = ("study", "compare")


@dataclass
class ReportConfig:
    """Everything ``python -m nas.report`` can be told.

    Attributes:
        study: folder of the study.
        compare: folder of another study to compare it with, null for none.
        storage: database both are kept in, null for the files in their folders.
        output: file of the comparison, null for the default.
    """

    study: str | None = None
    compare: str | None = None
    storage: str | None = None
    output: str | None = None


def main(config: ReportConfig) -> None:
    """Write the report and say where it is."""
    settings = config
    if settings.study is None:
        raise ReportError("name the folder of a study, e.g.: python -m nas.report results/digits")
    if settings.output and settings.compare is None:
        raise ReportError("output is the file of a comparison: name the other study with compare=")
    if settings.storage is not None:
        check_database("storage", settings.storage)
    folder = Path(settings.study)
    study = read_study(folder, settings.storage, warn)
    if settings.compare is None:
        print_report_summary(write_report(folder, study))
        return
    other = Path(settings.compare)
    path = folder / f"comparison-{other.resolve().name}.html"
    if settings.output:
        path = Path(settings.output)
        if path.suffix not in (".html", ".htm"):
            raise ReportError(f"output={path} is to hold a page: let it end in .html")
        check_output(path, "output")
    first, second = write_comparison(path, study, read_study(other, settings.storage, warn))
    rows = comparison_rows(first, second) | {"page": str(path)}
    print_summary(f"{first.name} and {second.name}", rows, f"open {file_word(path)} in a browser")


if __name__ == "__main__":
    command("report", ReportConfig, main, STUDIES)
