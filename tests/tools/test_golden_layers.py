"""What layers are made of stays as it was; ``python -m tools.golden_layers`` writes it down anew."""

import json

import pytest

from tools.golden_layers import GOLDEN, described, networks


@pytest.mark.parametrize("part", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 2, 3))])
def test_layers_are_what_they_were(part: int) -> None:
    golden = json.loads(GOLDEN.read_text())
    found = networks()
    assert len(found) == len(golden)
    for network, expected in list(zip(found, golden, strict=True))[part::4]:
        assert described(network) == expected
