import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nas.page import sentences
from nas.page.figures import save_pareto_figures
from nas.page.files import (
    ReportFiles,
    answer_rows,
    next_command,
    pareto_csv,
    summary_rows,
    write_report,
)
from nas.page.reading import ReportError, read_study
from nas.page.rendering import summary
from nas.page.sentences import MIXED_KINDS
from nas.saving import SaveError
from search_spaces.architecture import Architecture
from tests.cases import assert_drawn
from tests.page.report_cases import REFERENCES, made_up_study, network, report, writable

SVG = "http://www.w3.org/2000/svg"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    folder = tmp_path_factory.mktemp("results") / "made_up"
    made_up_study(folder)
    stale = folder / "architectures" / "0123456789.yaml"
    stale.parent.mkdir()
    stale.write_text("of an older front")
    (stale.parent / "mine.yaml").write_text("not ours")
    return write_report(folder, read_study(folder))


def test_csv_has_a_line_for_each_front_member_and_reference(files: ReportFiles) -> None:
    rows = list(csv.DictReader(files.table.open(encoding="utf-8")))
    expected = {each.id for each in (*files.report.front, *files.report.references)}
    assert {row["id"] for row in rows} == expected
    assert {row["name"] for row in rows if row["kind"] == "reference"} == set(REFERENCES)
    latencies = [float(row["latency_ms"]) for row in rows]
    assert latencies == sorted(latencies)
    first = files.report.front[0]
    row = next(row for row in rows if row["id"] == first.id)
    assert float(row["top1"]) == pytest.approx(first.top1, rel=1e-5)
    assert (row["accuracy_source"], row["latency_source"]) == ("predicted", "estimated")
    assert (int(row["macs"]), int(row["resolution"])) == (first.macs, first.resolution)


@pytest.mark.parametrize("count", ["forty", [40]])
def test_words_of_a_study_that_no_page_can_repeat_are_one_line(count: object, tmp_path: Path) -> None:
    made_up_study(tmp_path, trials=1)
    study = writable(tmp_path)
    study.set_user_attr("provenance", {"latency": {"counts": {"measured": count}}})
    with pytest.raises(ReportError, match="measured must be a whole number"):
        write_report(tmp_path, study)
    assert [each.name for each in tmp_path.iterdir() if each.name[0] != "."] == ["study.journal"]


def test_a_command_of_any_length_is_shown(tmp_path: Path) -> None:
    made_up_study(tmp_path, trials=1)
    study = writable(tmp_path)
    command = f"python -m nas.search search.references=[{','.join(f'{n}.yaml' for n in range(3_000))}]"
    study.set_user_attr("provenance", {"command": command, "latency": {"title": "board " * 1_500}})
    assert command in write_report(tmp_path, study).html.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["report.html", "pareto.png", "labels.txt", "bundles"])
def test_what_a_report_cannot_replace_is_said_first(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    made_up_study(folder, trials=1)
    if name == "bundles":
        (folder / name).symlink_to(tmp_path)
    else:
        (folder / name).mkdir()
    with pytest.raises(SaveError, match=rf"{name} (is a folder, where|leads out of)"):
        write_report(folder, read_study(folder))
    assert {each.name for each in folder.iterdir() if each.name[0] != "."} == {"study.journal", name}


def test_a_board_of_any_name_is_drawn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    made_up_study(tmp_path, trials=1)
    study = writable(tmp_path)
    study.set_user_attr(
        "provenance", {"command": "a\x1b[2J", "latency": {"title": "a\x1b[2J\r\u202e\u4e2d b"}}
    )
    files = write_report(tmp_path, study)
    for path in (*files.figures[1:], files.summary, *files.architectures.iterdir()):
        assert not {*path.read_text(encoding="utf-8")} & {"\x1b", "\r", "\u202e"}
    assert r"a\x1b[2J" in "".join(ElementTree.parse(files.figures[1]).getroot().itertext())
    assert all(map(Architecture.from_file, files.architectures.iterdir()))
    assert not recwarn.list  # matplotlib's would show the escape as it is


def test_architectures_say_what_they_are_and_can_be_read(files: ReportFiles) -> None:
    kept = {path.stem for path in files.architectures.glob("*.yaml")}
    found = [each for answer in files.report.answers for each in (answer.as_fast, answer.as_accurate)]
    assert kept == {each.id for each in (*files.report.front, *found) if each} | {"mine"}
    for member in files.report.front:
        text = (files.architectures / f"{member.id}.yaml").read_text(encoding="utf-8")
        assert Architecture.from_yaml(text) == member.architecture
        comments = [line for line in text.splitlines() if line.startswith("#")]
        assert f"{member.latency} (estimated)" in comments[1]
        assert f"{member.top1:.2f} ± {member.deviation:.2f} % (predicted)" in comments[1]


def test_summary_and_console_give_the_answers(files: ReportFiles) -> None:
    text = files.summary.read_text(encoding="utf-8")
    beside = {row[0]: row[2:] for row in answer_rows(files.report)}
    for answer in files.report.answers:
        assert f"At its latency: {sentences.gain(answer)}" in text
        assert f"At its accuracy: {sentences.saving(answer)}" in text
        # Which networks these are, too: each has a file.
        for row, said, found in zip(
            beside[answer.reference.label],
            (sentences.gain(answer), sentences.saving(answer)),
            (answer.as_fast, answer.as_accurate),
            strict=True,
        ):
            assert row.startswith(f"{said}: {found.id}" if found else said)
    assert summary_rows(files)["page"] == str(files.html)
    assert next_command(files).endswith(f"{files.report.front[-1].id}.yaml")


def test_predicted_and_published_accuracies_are_never_mixed_silently(files: ReportFiles) -> None:
    assert MIXED_KINDS not in files.summary.read_text(encoding="utf-8")
    published = replace(network(75.2, 10.0, 1, "published_one"), accuracy_source="published", deviation=None)
    mixed = report(published, network(76.9, 9.0, 2))
    ((_, _, gain, _),) = answer_rows(mixed)
    assert gain == "not compared: predicted 76.90 ± 0.50 %; published 75.20 %"
    assert MIXED_KINDS in summary(mixed)
    assert MIXED_KINDS in summary_rows(replace(files, report=mixed))["mind"]


def test_figures_are_written(files: ReportFiles) -> None:
    png, svg = files.figures
    assert_drawn(png)
    text = svg.read_text(encoding="utf-8")
    # Text stays text, so that papers can restyle it.
    shown = {"".join(each.itertext()).strip() for each in ElementTree.fromstring(text).iter(f"{{{SVG}}}text")}
    assert set(REFERENCES) <= shown, shown


def test_the_same_study_gives_the_same_files(files: ReportFiles) -> None:
    paths = [files.html, files.summary, files.table, files.figures[1]]
    before = [path.read_bytes() for path in paths]
    write_report(files.html.parent, read_study(files.html.parent))
    assert [path.read_bytes() for path in paths] == before


def test_figures_show_names_as_they_are_and_leave_what_links_lead_to(tmp_path: Path) -> None:
    hostile = r"board $\frac{x$ <script>"
    made = report(network(70.0, 1.0, 1), network(75.0, 2.0, 2, hostile))
    mine = tmp_path / "mine"
    mine.write_text("mine")
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "pareto.svg").symlink_to(mine)
    svg = save_pareto_figures(made, folder)[1]
    assert mine.read_text() == "mine"
    shown = {"".join(each.itertext()).strip() for each in ElementTree.parse(svg).iter(f"{{{SVG}}}text")}
    assert hostile in shown


def test_names_are_neither_formulas_nor_markup() -> None:
    hostile = "=cmd|' /C calc'!A0 <script>alert(1)</script> | `x` [a](b)\n# title"
    made = report(network(70.0, 1.0, 1), network(75.0, 2.0, 2, hostile))
    rows = list(csv.DictReader(io.StringIO(pareto_csv(made))))
    (name,) = (row["name"] for row in rows if row["kind"] == "reference")
    assert name.startswith("'=cmd")
    text = summary(made)
    assert not re.search(r"(?<!\\)<", text)
    (line,) = (line for line in text.splitlines() if line.startswith("|") and "script" in line)
    assert len(re.findall(r"(?<!\\)\|", line)) == 7
    assert "\n# title" not in text
