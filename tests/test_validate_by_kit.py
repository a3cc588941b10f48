"""A board without network is validated by a kit: made here, run there, read here."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nas.latency.validation import load_card
from tests.cases import TINY_SPACE, Run, refused

_KIT = ["hardware=rpi5", "search_space=tiny.yaml"]


def _measured(kit: str, folder: Path) -> None:
    subprocess.run([sys.executable, kit], cwd=folder, check=True, capture_output=True)


def test_a_board_without_a_table_has_nothing_to_validate(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY_SPACE))
    refused(run("validate", *_KIT, "validate.kit=check.zip"), "no latency table", "profile.kit=rpi5-kit.zip")
    refused(run("validate", *_KIT), "not this machine", "validate.kit=rpi5-check.zip")
    assert not (tmp_path / "check.zip").exists()


@pytest.mark.slow
def test_a_board_without_network_is_validated_by_kit(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY_SPACE))
    few = ["profile.max_keys=60", "profile.networks=4", "profile.rounds=4", "profile.kit=kit.zip"]
    assert run("profile", *_KIT, *few).code == 0
    _measured("kit.zip", tmp_path)
    assert run("profile", *_KIT, "profile.import=kit-result.jsonl").code == 0
    asked = [*_KIT, "validate.networks=6", "validate.rounds=4"]
    made = run("validate", *asked, "validate.kit=check.zip")
    assert made.code == 0, made
    assert "validate.import=check-result.jsonl" in made.out
    _measured("check.zip", tmp_path)
    other = run("validate", *_KIT, "validate.networks=5", "validate.import=check-result.jsonl")
    refused(other, "another kit")
    read = run("validate", *asked, "validate.import=check-result.jsonl")
    assert read.code == 0, read
    card = load_card(tmp_path / "results" / "latency" / "rpi5-onnxruntime-fp32-1t")
    assert card is not None
    assert card.calibrated.networks >= 6
