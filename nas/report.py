"""``python -m nas.report STUDY [OTHER]``: rebuild a study's report, or compare two studies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.command import command
from nas.console import print_report_summary, print_summary, warn
from nas.page.files import comparison_rows, write_comparison, write_report
from nas.page.reading import ReportError, read_study
from nas.saving import check_output


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
    print_summary(f"{first.name} and {second.name}", rows, f"open {path} in a browser")


def with_named_studies(arguments: Sequence[str]) -> list[str]:
    """Let the folders of one or two studies stand without ``study=`` and ``compare=``."""
    names = iter(("study", "compare"))
    named = []
    for argument in arguments:
        name = None if argument.startswith("-") or "=" in argument else next(names, None)
        if name is not None:
            quoted = argument.replace("\\", "\\\\").replace("'", "\\'")
            argument = f"{name}='{quoted}'"
        named.append(argument)
    return named


if __name__ == "__main__":
    sys.argv[1:] = with_named_studies(sys.argv[1:])
    command("report", ReportConfig, main)
