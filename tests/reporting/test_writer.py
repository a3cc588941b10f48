import csv

import pytest

from nas.reporting.data import read_study
from nas.reporting.writer import ReportFiles, summary_rows, write_report
from search_spaces.block import Architecture
from tests.reporting.report_cases import REFERENCES, made_up_study


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


def test_architectures_say_what_they_are_and_can_be_read(files: ReportFiles) -> None:
    kept = {path.stem for path in files.architectures.glob("*.yaml")}
    assert kept == {each.id for each in files.report.front} | {"mine"}
    for network in files.report.front:
        text = (files.architectures / f"{network.id}.yaml").read_text(encoding="utf-8")
        assert Architecture.from_yaml(text) == network.architecture
        comments = [line for line in text.splitlines() if line.startswith("#")]
        assert f"{network.latency_ms:.2f} ms (estimated)" in comments[1]
        assert f"{network.top1:.2f} ± {network.deviation:.2f} % (predicted)" in comments[1]


def test_summary_and_console_give_the_answers(files: ReportFiles) -> None:
    text = files.summary.read_text(encoding="utf-8")
    rows = summary_rows(files)
    for answer in files.report.answers:
        assert f"At its latency: {answer.gain}" in text
        assert f"At its accuracy: {answer.saving}" in text
        assert answer.gain in rows[f"beside {answer.reference.label}"]
    assert rows["page"] == str(files.html)


def test_figures_are_written(files: ReportFiles) -> None:
    png, svg = files.figures
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text(encoding="utf-8")
    assert "<svg" in text
    # Text stays text, so that papers can restyle it.
    assert "mobilenet_v1" in text


def test_the_same_study_gives_the_same_files(files: ReportFiles) -> None:
    paths = [files.html, files.summary, files.table, files.figures[1]]
    before = [path.read_bytes() for path in paths]
    write_report(files.html.parent, read_study(files.html.parent))
    assert [path.read_bytes() for path in paths] == before
