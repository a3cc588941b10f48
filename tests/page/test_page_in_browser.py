"""The page in a real browser: Debian's Chromium, without network."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.page.reading import read_study, report_of
from nas.page.rendering import comparison_page, report_page
from search_spaces.references import reference
from tests.page.report_cases import REFERENCES, made_up_study, network, report
from tests.page.test_html import HOSTILE, hostile_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs Debian's packages chromium and chromium-driver"
    ),
]
ARTIFACTS = Path(__file__).parents[1] / "artifacts"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """A page in Chromium, and what it logged and requested."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.get("about:blank")

    def open(self, path: Path, width: int = 1200, scheme: str = "light") -> None:
        device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(path.as_uri())
        assert self.evaluate("document.documentElement.dataset.ready") == "true"

    def evaluate(self, expression: str) -> Any:
        return self.driver.execute_script(f"return {expression}")

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            each["params"]["request"]["url"]
            for each in messages
            if each["method"] == "Network.requestWillBeSent"
        ]

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def screenshot(self, name: str) -> None:
        """Keep the whole page as a picture in tests/artifacts."""
        ARTIFACTS.mkdir(exist_ok=True)
        size = self.evaluate("[document.body.scrollWidth, document.body.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        picture = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        (ARTIFACTS / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "made_up"
    made_up_study(folder)
    path = folder / "report.html"
    path.write_text(report_page(report_of(read_study(folder))), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_opens_without_a_complaint_or_a_request(
    browser: Browser, page: Path, width: int, scheme: str
) -> None:
    browser.open(page, width, scheme)
    assert browser.driver.get_log("browser") == []
    assert browser.requests() == [page.as_uri()]
    # 60 candidates and two references, each drawn once.
    assert len(browser.all(".point")) == 62
    assert len(browser.all("path.point.reference")) == 2
    assert len(browser.all("[data-importances] .bar")) > 0
    # Nothing sticks out of a phone's screen.
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.screenshot(f"report-{width}-{scheme}")


def test_hovering_tells_what_a_point_is(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert not browser.find(".tip").is_displayed()
    ActionChains(browser.driver).move_to_element(browser.find("path.point.reference")).perform()
    tip = browser.find(".tip").text
    for part in ("mobilenet_", " ms, estimated", "%, predicted", " parameters", " MACs", "id "):
        assert part in tip


def test_clicking_selects_a_network_and_lays_a_reference_beside_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    before = browser.find("#pair h3").text
    first = browser.all("circle.point.front")[0]
    ActionChains(browser.driver).move_to_element(first).click().perform()
    one, other = browser.all("#pair h3")
    assert one.text != before
    assert other.text.startswith("mobilenet_")
    tables = browser.all("#pair table.blocks")
    assert len({len(table.find_elements(By.TAG_NAME, "tr")) for table in tables}) == 1
    assert browser.all("td.differs")
    # Layer latencies of both are known: the bars are milliseconds.
    assert [table.find_elements(By.TAG_NAME, "th")[-1].text for table in tables] == ["ms", "ms"]
    assert browser.find("tr.chosen button").text == one.text


def test_layers_of_both_networks_lie_beside_each_other(browser: Browser, page: Path) -> None:
    browser.open(page)
    tops = browser.evaluate(
        "[...document.querySelectorAll('#pair table.blocks')].map(table => "
        "[...table.querySelectorAll('tr')].map(row => Math.round(row.getBoundingClientRect().top)))"
    )
    assert tops[0] == tops[1]


def test_a_logarithmic_axis_keeps_every_network(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    networks = [network(50.0 + number, 0.1 * 2**number, number) for number in range(10)]
    path.write_text(report_page(report(*networks)), encoding="utf-8")
    browser.open(path)
    # A range of 500 opens logarithmically: equal ratios are equal distances.
    assert browser.find("#logarithmic").is_selected()
    steps = [
        float(after.get_attribute("cx")) - float(before.get_attribute("cx"))
        for before, after in itertools.pairwise(browser.all("circle.point.front"))
    ]
    assert len(steps) == 9
    assert max(steps) - min(steps) < 0.3
    browser.find("#logarithmic").click()
    assert len(browser.all("circle.point.front")) == 10
    assert browser.driver.get_log("browser") == []


def test_other_ways_to_select(browser: Browser, page: Path) -> None:
    browser.open(page)
    buttons = [each for each in browser.all("table button.link") if not each.text.startswith("mobilenet_")]
    wanted = buttons[0].text
    browser.driver.execute_script("arguments[0].click()", buttons[0])
    assert browser.find("#pair h3").text == wanted
    browser.find("#pareto").send_keys(Keys.ARROW_RIGHT)
    assert browser.find("#pair h3").text == buttons[1].text
    last = browser.all("#against option")[-1]
    name, value = last.text, last.get_attribute("value")
    browser.driver.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))",
        browser.find("#against"),
        value,
    )
    assert browser.all("#pair h3")[1].text == name


def test_zooming_in_keeps_the_front(browser: Browser, page: Path) -> None:
    browser.open(page)
    count = len(browser.all(".point.front"))
    browser.find("button[data-view=front]").click()
    assert len(browser.all(".point.front")) == count
    assert len(browser.all(".point")) <= 62


@pytest.mark.parametrize("width", [1200, 390])
def test_two_studies_share_a_page(browser: Browser, page: Path, tmp_path: Path, width: int) -> None:
    made_up_study(tmp_path / "other", trials=30)
    reports = [report_of(read_study(folder)) for folder in (page.parent, tmp_path / "other")]
    path = tmp_path / "comparison.html"
    path.write_text(comparison_page(*reports), encoding="utf-8")
    browser.open(path, width)
    assert browser.driver.get_log("browser") == []
    assert len(browser.all(".point")) == 62 + 32
    tables = "[...document.querySelectorAll('.compare .scroll')]"
    assert browser.evaluate(f"{tables}.map(t => t.scrollWidth <= t.clientWidth)") == [True] * 4
    # References that lie in one place are named once.
    assert sorted(each.text for each in browser.all("#pareto text.reference")) == sorted(
        name.removeprefix("mobilenet_") for name in REFERENCES
    )
    assert len(browser.all(".frontline.two")) == 2
    one, other = (each.text for each in browser.all("#pair h3"))
    assert one.endswith("(made_up)")
    assert other.endswith("(other)")
    browser.screenshot(f"comparison-{width}")


@pytest.mark.parametrize("media", ["screen", "print"])
def test_no_text_covers_another_in_the_answers(browser: Browser, page: Path, media: str) -> None:
    browser.open(page, 780)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.answer p, .answer h3')].map(e => e.getBoundingClientRect())"
        ".map(r => [r.left, r.top, r.right, r.bottom])"
    )
    for one, other in itertools.combinations(boxes, 2):
        across = min(one[2], other[2]) - max(one[0], other[0])
        down = min(one[3], other[3]) - max(one[1], other[1])
        assert across <= 1 or down <= 1
    browser.screenshot(f"report-{media}")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_five_thousand_trials_open(
    browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [
        replace(
            network(40 + 38 * (1 - 3 / (3 + i % 997)) - i % 89 / 10, 5 + i % 997 / 10, i),
            network=reference("mobilenet_v3_large", (128, 160, 192, 224)[i % 4]),
        )
        for i in range(5000)
    ]
    path = tmp_path / "report.html"
    path.write_text(report_page(report(*members)), encoding="utf-8")
    browser.open(path)
    assert len(browser.all(".point")) == 5000
    assert browser.driver.get_log("browser") == []
    with capsys.disabled():  # the figure is published in results/README.md
        loaded_ms = browser.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        print(f" 5,000 trials: {path.stat().st_size / 1e6:.1f} MB, loaded and drawn in {loaded_ms:.0f} ms")


def test_a_study_of_one_reference_beyond_the_budget_can_be_drawn(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_page(report(network(75.0, 10.0, 1, "r"), budget_ms=5.0)), encoding="utf-8")
    browser.open(path)
    browser.find("button[data-view=front]").click()
    assert browser.driver.get_log("browser") == []
    assert len(browser.all(".point")) == 1
    assert "no reference to compare with" in browser.find("#pair").text


def test_hostile_names_are_shown_and_not_run(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_page(hostile_report()), encoding="utf-8")
    browser.open(path)
    assert browser.driver.get_log("browser") == []
    assert browser.find("h1").text == HOSTILE
    assert browser.driver.title.startswith(HOSTILE)


def test_latencies_read_the_same_on_the_page_and_in_its_text(browser: Browser, tmp_path: Path) -> None:
    latencies = ((0.1123, 0.0021), (9.996, None), (66.53, 3.86), (123.37, None), (1234.4, 96.0))
    networks = [
        replace(network(60.0 + number, ms, number), latency_error_ms=error)
        for number, (ms, error) in enumerate(latencies)
    ]
    path = tmp_path / "report.html"
    path.write_text(report_page(report(*networks)), encoding="utf-8")
    browser.open(path)
    for each, button in zip(networks, browser.all("table button.link"), strict=True):
        browser.driver.execute_script("arguments[0].click()", button)
        assert f"{each.latency} {each.latency_source}" in browser.find("#pair .facts").text
