import base64
import hashlib
import html
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from nas.accuracy.joint import JointPrediction
from nas.latency.calibration import ErrorSummary
from nas.page.comparison import equal_budgets
from nas.page.rendering import comparison_page, report_page
from nas.page.report_data import Report
from nas.page.sentences import MIXED_KINDS
from search_spaces.references import reference
from tests.page.report_cases import network, report

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>'\"&{{script}}"


class Page(HTMLParser):
    """Elements, their attributes and the scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.content: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag + (dict(attrs).get("id") or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.content[self._inside] = self.content.get(self._inside, "") + data


def _words(page: str) -> str:
    """What a page says, without its markup and its script."""
    body = page[page.index("<body>") : page.index('<script id="data"')]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def studies_of(page: Page) -> Any:
    return json.loads(page.content["scriptdata"])


def hostile_report() -> Report:
    networks = [network(75.0, 10.0, 1), network(74.0, 12.0, 2, HOSTILE)]
    provenance = {"latency": {"title": HOSTILE, "warning": HOSTILE}, "command": HOSTILE, HOSTILE: HOSTILE}
    return replace(report(*networks, provenance=provenance), name=HOSTILE)


@pytest.mark.parametrize("make", [report_page, lambda one: comparison_page(one, one)])
def test_names_from_outside_stay_text(make: Any) -> None:
    page = Page(make(hostile_report()))
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert "img" not in [tag for tag, _ in page.elements]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert studies_of(page)[0]["name"] == HOSTILE
    assert studies_of(page)[0]["names"] == {"1": HOSTILE}
    assert page.content["h1"].startswith(HOSTILE)


def test_the_page_may_run_its_own_script_and_load_nothing() -> None:
    text = report_page(report(network(75.0, 10.0)))
    page = Page(text)
    policies = [
        attributes["content"]
        for tag, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    (policy,) = policies
    assert policy is not None
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.content[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    links = [
        attributes[name]
        for _, attributes in page.elements
        for name in ("src", "href")
        if attributes.get(name) is not None
    ]
    assert links == ["data:,"]
    assert not re.search(r"\b(fetch|XMLHttpRequest|eval|import)\b\s*\(", page.content["script"])


def test_embedded_layers_rebuild_the_printed_table() -> None:
    large = reference("mobilenet_v3_large")
    page = Page(report_page(report(replace(network(75.0, 10.0, 1, "v3"), network=large))))
    (study,) = studies_of(page)
    layers = [study["layers"][index] for index in study["networks"]["layers"][0]]
    cells = [row for layer in layers for row in layer["rows"]]
    printed = [
        [cell.strip() for cell in line.strip("| \n").split(" | ")]
        for line in large.to_markdown().splitlines()
    ]
    assert cells == printed[2:]
    # Numbers stand beside the printed cells, so that the script reads none back.
    assert [f"{each['size']}²" for each in layers] == [each["rows"][0][0].split(" ")[0] for each in layers]
    assert [str(each["stride"]) for each in layers] == [each["rows"][0][6] for each in layers]
    assert len(layers) == len(large.blocks) + 2


def test_five_thousand_networks_stay_small() -> None:
    members = [
        replace(network(70.0 + i % 97 / 10, 5 + i % 89, i), network=reference("mobilenet_v2"))
        for i in range(5000)
    ]
    assert len(report_page(report(*members)).encode()) < 6e6


def test_of_a_very_long_study_the_page_holds_the_tables_that_matter() -> None:
    table = reference("mobilenet_v3_small")
    networks = [network(60 - number / 1e3, 5 + number / 1e3, number) for number in range(4_000)]
    networks[2_999] = network(70, 9.5, 2_999)
    networks = [replace(each, network=table) for each in networks]
    (study,) = studies_of(Page(report_page(report(*networks))))
    tables = study["networks"]["layers"]
    assert len(tables) == 4_000
    assert 2_999 in study["front"]
    assert {position for position, each in enumerate(tables) if each} == {*study["front"]}


def test_sources_are_named_beside_numbers() -> None:
    published = replace(
        network(80.0, 30.0, 2, "torchvision:resnet50"), accuracy_source="published", latency_source="measured"
    )
    text = report_page(report(network(75.0, 10.0, 1), published))
    page = _words(text)
    assert "80.00 ± 0.50 % published , 30.0 ms measured" in page
    assert "accuracy predicted (1), published (1); latency measured (1), table (1)" in page
    assert "as its authors report it" in page


def test_the_validation_card_begins_with_a_sentence() -> None:
    errors = asdict(ErrorSummary(50, 0.021, 0.0, 0.94, 1.0, 0.05, 0.9, 0.9))
    for latency, sentence in (
        (
            {"card": {"calibrated": errors}},
            "50 networks it never saw, the table is off by 2.1 % on average; 94",
        ),
        (
            {"calibration": {"left_out": errors}},
            "50 networks left out one by one, the table is off by 2.1 %",
        ),
        (
            {"error_percent": {"estimated": 5.8}},
            "Nothing was measured on this hardware: latencies are estimated",
        ),
        ({}, "Nobody knows"),
    ):
        found = report(network(75.0, 10.0, 1), provenance={"latency": latency})
        assert sentence in _words(report_page(found))


def test_the_page_opens_with_the_network_at_the_budget_or_at_v3_large() -> None:
    networks = [
        *(network(70.0 + number, 10.0 * number, number) for number in range(1, 5)),
        network(60.0, 15.0, 5, "mobilenet_v2"),
        network(60.0, 25.0, 6, "mobilenet_v3_large"),
    ]
    for provenance, position in (({"budget_name": "mobilenet_v2"}, 0), ({}, 1)):
        (study,) = studies_of(Page(report_page(report(*networks, provenance=provenance))))
        assert study["best"] == position
    for budgeted, position in ((report(*networks[:4]), 3), (report(*networks, budget_ms=31.0), 2)):
        (study,) = studies_of(Page(report_page(budgeted)))
        assert study["best"] == position


def test_labels_are_explained_for_what_they_label() -> None:
    page = Page(report_page(report(network(75.0, 10.0, 1))))
    words = _words(report_page(report(network(75.0, 10.0, 1))))
    assert "predicted Accuracy: a model fitted to published trainings says so" in words
    assert "Latency: like table, but" not in words
    assert "± One standard deviation." in words
    titles = [attributes["title"] for _, attributes in page.elements if attributes.get("class") == "source"]
    assert titles
    assert all(titles)


def test_answers_beside_many_references_are_folded() -> None:
    references = [network(60.0, 10.0 + number, number, f"r{number}") for number in range(1, 10)]
    page = report_page(report(network(75.0, 10.0, 0), *references))
    assert page.count('<article class="answer">') == 9
    assert page.index("Beside 3 more references") > page.index(">r6<")
    assert page.index("Beside 3 more references") < page.index(">r7<")


def test_provenance_is_words_and_no_matrix() -> None:
    joint = JointPrediction("scratch", ("0123456789",), np.ones(1), np.full((1, 1), 0.123456), np.ones(1))
    known = {"joint": joint.to_dict(), "sampler": "nsga2"}
    page = report_page(report(network(75.0, 10.0, 1), provenance=known))
    text = re.sub(r"<[^>]+>", " ", page)
    assert re.search(r"sampler\s+nsga2", text)
    assert "0.123456" not in text
    assert "0123456789" not in text


def test_predicted_and_published_accuracies_are_not_compared() -> None:
    published = replace(network(75.2, 10.0, 1, "r"), accuracy_source="published", deviation=None)
    text = _words(report_page(report(published, network(76.9, 9.0, 2))))
    assert "r 75.20 % published , 10.0 ms table At its latency: not compared" in text
    assert "predicted 76.90 ± 0.50 %; published 75.20 %" in text
    assert "+1.7 points" not in text
    assert MIXED_KINDS in text
    alike = _words(report_page(report(network(75.2, 10.0, 1, "r"), network(76.9, 9.0, 2))))
    assert "against 75.20 ± 0.50 %, both predicted" in alike
    assert "not compared" not in alike


def test_comparisons_give_the_best_within_equal_budgets() -> None:
    one = report(network(70.0, 10.0, 1), network(75.0, 40.0, 2))
    other = report(network(69.0, 10.0, 1), network(76.5, 30.0, 2), provenance={"sampler": "random"})
    budgets = {row.budget_ms: row.points for row in equal_budgets(one, other)}
    assert budgets == {10: -1.0, 15: -1.0, 20: -1.0, 30: 6.5}
    page = _words(comparison_page(one, other))
    assert "+6.5 points" in page
    assert re.search(r"What differs .*sampler – random", page)


def test_a_cautious_front_is_explained() -> None:
    sure = report(network(75.0, 10.0, 1))
    cautious = report(network(75.0, 10.0, 1), caution=1.5)
    assert "less 1.5 standard deviations" in _words(report_page(cautious))
    assert "standard deviations" not in _words(report_page(sure))


def test_a_front_of_networks_timed_end_to_end_says_so() -> None:
    timed = replace(network(70.0, 10.0, 1), latency_source="measured")
    summed = replace(network(75.0, 9.0, 2), latency_source="table")
    some = report(timed, summed, provenance={"end_to_end": {"trials": 2}})
    assert "Only networks timed end to end are on the front" in _words(report_page(some))
    assert "Only networks timed" not in _words(report_page(report(timed)))
    assert "Only networks timed" not in _words(report_page(report(summed)))


def test_studies_of_different_devices_are_not_compared_in_milliseconds() -> None:
    def on(device: str) -> Report:
        return report(network(75.0, 10.0, 1, "r"), provenance={"latency": {"device": device}})

    assert "not milliseconds with milliseconds" in comparison_page(on("one"), on("other"))
    assert "not milliseconds with milliseconds" not in comparison_page(on("one"), on("one"))
