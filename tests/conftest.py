from pathlib import Path

import pytest

from search_spaces.space import SearchSpace

CONF = Path(__file__).parent.parent / "conf"


@pytest.fixture(scope="session")
def mobilenet_space() -> SearchSpace:
    return SearchSpace.from_yaml(CONF / "search_space" / "mobilenet.yaml")
