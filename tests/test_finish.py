"""Which networks of a search are trained to the end."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nas import finish
from nas.data import DatasetSettings
from nas.finish import finalists, train_best
from nas.saving import SaveError
from nas.settings import FinalRecipeSettings
from search_spaces.references import reference
from tests.page.report_cases import network, report

TABLE = reference("mobilenet_v1_025", 32, 10)


def _front(count: int) -> list:
    return [replace(network(60 + number, 1 + number, number), network=TABLE) for number in range(count)]


def test_references_and_what_was_found_beside_them_come_first() -> None:
    beside = replace(network(50, 5.5, 90, "mobilenet_v2"), network=TABLE)
    found = finalists(report(*_front(10), beside), 3)
    # The most accurate; trial 4 takes 5 ms, mobilenet_v2 5.5; then the other end of the front.
    assert [each.trial for each in found.values()] == [9, 4, 0, 90]
    within = finalists(report(*_front(10), beside, budget_ms=8), 1)
    assert [each.trial for each in within.values()] == [7, 90]


def test_the_front_is_covered_evenly_and_never_twice() -> None:
    front = _front(9)
    assert [each.trial for each in finalists(report(*front), 5).values()] == [8, 0, 2, 4, 1]
    assert len(finalists(report(*front), 100)) == 9
    known = finalists(report(*front), 2, {front[6].id})
    assert [each.trial for each in known.values()] == [6, 8]


def test_names_of_a_study_from_elsewhere_are_no_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = _front(1)[0]
    named = [
        replace(network(50, 5, 90 + number, name), network=TABLE)
        for number, name in enumerate(("../x", "own"))
    ]
    monkeypatch.setattr(finish, "report_of", lambda *_, **__: report(front, *named))
    trained_in: list[Path] = []

    def training(*given: Any) -> None:
        trained_in.append(given[3])

    monkeypatch.setattr(finish, "finish", training)
    study: Any = SimpleNamespace(study_name="s", user_attrs={})
    train_best(study, 1, DatasetSettings("synthetic"), FinalRecipeSettings(device="cpu"), tmp_path)
    places = [tmp_path / "training" / f"{name}.safetensors" for name in (front.id, named[0].id, "own")]
    assert trained_in == places
    (tmp_path / "bundles").symlink_to(tmp_path.parent)
    with pytest.raises(SaveError, match="leads out of"):
        train_best(study, 1, DatasetSettings("synthetic"), FinalRecipeSettings(device="cpu"), tmp_path)
