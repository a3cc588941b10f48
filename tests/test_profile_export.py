"""``profile.export=``: the table there is, for once-for-all's code."""

import math
from pathlib import Path

import yaml

from search_spaces.references import reference
from tests.cases import Run, refused
from tests.latency.test_once_for_all import _table, _their_sum


def test_the_command_writes_the_table_there_is(run: Run, tmp_path: Path) -> None:
    asked = ["hardware=rpi5", "profile.export=ofa.yaml"]
    refused(run("profile", *asked), "there is no latency table in", "nas.profile hardware=rpi5")
    network = reference("mobilenet_v3_small")
    table = _table(network).with_entries({}, hardware="rpi5")
    table.save(tmp_path / "results" / "latency" / "rpi5-onnxruntime-fp32-1t")
    outcome = run("profile", *asked)
    assert outcome.code == 0, outcome
    lut = yaml.safe_load((tmp_path / "ofa.yaml").read_text())
    assert math.isclose(_their_sum(lut, network), table.raw_ms(network), rel_tol=1e-7)
    refused(run("profile", *asked), "ofa.yaml exists already")
