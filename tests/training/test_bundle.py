"""A bundle works without this project and computes what the network computes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from nas.network import Network
from nas.pictures.decode import read_picture
from nas.pictures.preprocessing import Preprocessing
from nas.pictures.recognition import Recognition
from nas.training import bundle
from nas.training.bundle import BundleError, named_weights, write_bundle
from nas.training.network_code import NETWORK_CODE
from search_spaces.references import reference

NAMES = ("Ärger", "Zebra", "apple 10", "pear")
RECOGNITION = Recognition(NAMES, Preprocessing(36, 32))


def _trained(name: str, classes: int = 4) -> Network:
    """With running statistics, and logits that differ."""
    torch.manual_seed(0)
    network = Network(reference(name, 32, classes))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 0.2)
        for _ in range(30):
            network.train()(torch.randn(8, 3, 32, 32))
    return network.eval()


def _images(count: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(count, 1, 3, 32, 32)).astype(np.float32))


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "mobilenet_v2_035",
        "mobilenet_v1_025",
        "mnasnet_a1",
        "mobilenetv4_conv_small_035",
        pytest.param("mobilenetv4_conv_medium_050", marks=pytest.mark.slow),
    ],
)
def test_every_file_computes_what_the_network_computes(tmp_path: Path, name: str) -> None:
    network = _trained(name)
    parity = write_bundle(
        tmp_path, network, RECOGNITION, _images(), {"Figures": {"top-1": "90 | %"}}, "A <b>"
    )
    assert len(parity) == 3
    for file, each in parity.items():
        assert each.images == 8
        if file != bundle.INT8:
            assert each.difference < 1e-4
            assert each.same_answers == 1
    assert 0 < parity[bundle.INT8].difference < 1
    card = (tmp_path / "README.md").read_text()
    assert "| top-1 | 90 \\| % |" in card
    assert card.startswith("# A \\<b\\>\n")
    assert f"| {bundle.INT8} | {parity[bundle.INT8].difference:.1e} |" in card


@pytest.mark.slow
def test_the_files_need_nothing_of_this_project(tmp_path: Path) -> None:
    network = _trained("mobilenet_v3_small")
    write_bundle(tmp_path / "bundle", network, RECOGNITION, _images(), {})
    pixels = np.random.default_rng(1).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    shown = torch.from_numpy(RECOGNITION.preprocessing(read_picture(tmp_path / "photo.png")))[None]
    with torch.no_grad():
        expected = network(shown)
    torch.save(shown, tmp_path / "shown.pt")

    def run(*command: str) -> str:
        # Isolated: neither this project nor anything of the caller can be imported by accident.
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, env={}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("bundle/predict.py", "photo.png") == f"photo.png: {NAMES[int(expected.argmax())]}\n"
    # A deep picture, which Pillow alone would cut off to white.
    deep = np.random.default_rng(2).integers(0, 65536, (50, 40)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with torch.no_grad():
        answer = network(
            torch.from_numpy(RECOGNITION.preprocessing(read_picture(tmp_path / "deep.png")))[None]
        )
    assert run("bundle/predict.py", "deep.png") == f"deep.png: {NAMES[int(answer.argmax())]}\n"
    code = (
        "import sys; sys.path.insert(0, 'bundle'); import network, torch\n"
        "logits = network.load()(torch.load('shown.pt', weights_only=True))[0].tolist()\n"
        "assert not {'nas', 'search_spaces', 'torchvision', 'safetensors'} & set(sys.modules)\n"
        "print(*logits)"
    )
    assert np.allclose([float(each) for each in run("-c", code).split()], expected[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_the_keys_of_the_weights_are_torchvisions(name: str) -> None:
    from torchvision import models

    theirs = models.get_model(name, weights=None, num_classes=4)
    own = named_weights(_trained(name))
    assert list(own) == list(theirs.state_dict())
    theirs.load_state_dict(own)


def test_a_file_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = NETWORK_CODE.replace("features + self.block(features)", "self.block(features)")
    monkeypatch.setattr(bundle, "NETWORK_CODE", wrong)
    with pytest.raises(BundleError, match=r"network\.py with network\.safetensors does not compute what"):
        write_bundle(tmp_path / "bundle", _trained("mobilenet_v3_small"), RECOGNITION, _images(), {})
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(BundleError, match="the network has 10 classes, the images have 4"):
        write_bundle(
            tmp_path / "bundle", Network(reference("mobilenet_v1_025", 32, 10)), RECOGNITION, _images(), {}
        )


def test_weights_that_were_saved_are_finite_and_complete(tmp_path: Path) -> None:
    network = _trained("mobilenet_v1_025")
    write_bundle(tmp_path, network, replace(RECOGNITION), _images(), {})
    saved = safetensors.torch.load_file(tmp_path / bundle.WEIGHTS)
    assert sum(each.numel() for each in saved.values()) == sum(
        each.numel() for each in network.state_dict().values()
    )
