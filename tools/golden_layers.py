"""``python -m tools.golden_layers``: write ``tests/golden/layers.json`` anew, what layers are made of today.

Ids and layer keys of every reference and of fifty members of the default space, their MACs and parameters,
and digests of their ONNX graphs with the weights they are timed with. Moving code must not change any of it.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from nas.cost import cost
from nas.help import CONFIG_FOLDER
from nas.runtimes.subject import graph
from search_spaces.architecture import Architecture
from search_spaces.layers import layer_keys
from search_spaces.references import FAMILIES, reference
from search_spaces.space import SearchSpace

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "layers.json"
_MEMBERS = 50


def networks() -> list[Architecture]:
    """Every family's reference, and members of the default space."""
    space = SearchSpace.from_yaml(CONFIG_FOLDER / "search_space" / "mobilenet.yaml")
    generator = random.Random(18)  # no secret
    return [*map(reference, FAMILIES), *(space.sample(generator) for _ in range(_MEMBERS))]


def described(network: Architecture) -> dict[str, object]:
    """A description of all that must stay as it is while code moves."""
    counted = cost(network)
    keys = " ".join(map(str, layer_keys(network)))
    return {
        "id": network.id,
        "keys": hashlib.sha256(keys.encode()).hexdigest()[:16],
        "macs": counted.macs,
        "parameters": counted.parameters,
        "onnx": {
            precision: hashlib.sha256(graph(network, precision).SerializeToString()).hexdigest()[:16]
            for precision in ("fp32", "int8")
        },
        "rows": hashlib.sha256(network.to_markdown().encode()).hexdigest()[:16],
    }


def main() -> None:
    """Write the file anew."""
    GOLDEN.write_text(json.dumps([described(each) for each in networks()], indent=1) + "\n")


if __name__ == "__main__":
    main()
