"""The answers and the front of a study in Markdown, for READMEs and notes."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from nas.page import sentences
from nas.page.report import Report
from nas.saving import markdown_text


class _Verbatim(str):
    """Text of one line that stands in a block of code, where nothing is markup."""

    __slots__ = ()


def summary(report: Report) -> str:
    """The answers and the front in Markdown."""
    command = _Verbatim(" ".join(str(report.provenance.get("command") or "").split()))
    return _template().render(report=report, command=command)


@cache
def _template() -> Template:
    environment = Environment(  # noqa: S701 -- this is Markdown: whatever is filled in goes through finalize
        loader=PackageLoader("nas.page", "templates"),
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["sentences"] = sentences
    return environment.get_template("summary.md")


def _escaped(value: object) -> str:
    return value if isinstance(value, _Verbatim) else markdown_text(str(value))
