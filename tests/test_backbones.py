from collections.abc import Callable
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.ssdlite import ssdlite320_mobilenet_v3_large
from torchvision.ops import FeaturePyramidNetwork

from nas.backbones import detector, features, segmenter
from nas.network import Network, load_torchvision_weights
from search_spaces.architecture import Architecture
from search_spaces.references import reference
from search_spaces.tasks import TaskError


def _settled(network: Network) -> Network:
    """A network whose maps neither vanish nor explode: its norms have seen images."""
    torch.manual_seed(0)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(2, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope="module")
def large() -> tuple[Network, nn.Module]:
    """V3-Large, and torchvision's with the same weights."""
    network = _settled(Network(reference("mobilenet_v3_large", 224)))
    theirs = torchvision.models.mobilenet_v3_large(weights=None).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), network.state_dict().values(), strict=True)))
    return network, theirs


def test_maps_equal_torchvisions(large: tuple[Network, nn.Module]) -> None:
    network, theirs = large
    backbone = features(network)
    assert (backbone.strides, backbone.channels) == ((4, 8, 16, 32), (24, 40, 112, 960))
    # The last of torchvision's modules at each stride.
    getter = IntermediateLayerGetter(theirs.features, {"3": "0", "6": "1", "12": "2", "16": "3"})
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        found, wanted = backbone(images), getter(images)
    assert list(found) == list(wanted) == ["0", "1", "2", "3"]
    for number, stride in enumerate(backbone.strides):
        name = str(number)
        assert found[name].shape == (1, backbone.channels[number], 96 // stride, 96 // stride)
        assert found[name].std() > 1e-3
        torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("mobilenet_v1", "mobilenetv1_100"), ("mobilenet_v3_small", "mobilenetv3_small_100")],
)
def test_channels_are_those_that_timm_gives(name: str, theirs: str) -> None:
    known = timm.create_model(theirs, features_only=True).feature_info
    backbone = features(Network(reference(name)))
    assert (list(backbone.channels), list(backbone.strides)) == (known.channels()[1:], known.reduction()[1:])


def test_a_pyramid_takes_them() -> None:
    backbone = features(Network(reference("mobilenet_v2_050", 64)))
    maps = FeaturePyramidNetwork(list(backbone.channels), 32)(backbone(torch.randn(2, 3, 64, 64)))
    assert [each.shape for each in maps.values()] == [(2, 32, side, side) for side in (16, 8, 4, 2)]


def _check_training(
    network: Network, model: nn.Module, loss_of: Callable[[], Tensor], rate: float, steps: int
) -> None:
    """A few steps lower the loss and change the network itself."""
    before = [each.detach().clone() for each in network.layers[1].parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(
        not torch.equal(old, new) for old, new in zip(before, network.layers[1].parameters(), strict=True)
    )


@pytest.mark.parametrize("name", ["mobilenet_v1_025", "mobilenet_v2_035", "mobilenet_v3_small_050"])
def test_segmentation_trains_the_network_itself(name: str) -> None:
    torch.manual_seed(0)
    network = Network(reference(name, 64))
    model = segmenter(network, classes=5).train()
    images = torch.randn(2, 3, 64, 64)
    # Left half and right half: something that can be learnt in a few steps.
    labels = torch.arange(64).ge(32).long().expand(2, 64, 64)

    def loss_of() -> Tensor:
        logits = model(images)["out"]
        assert logits.shape == (2, 5, 64, 64)
        return nn.functional.cross_entropy(logits, labels)

    _check_training(network, model, loss_of, 0.1, 4)
    assert model.eval()(torch.randn(1, 3, 96, 96))["out"].shape == (1, 5, 96, 96)


@pytest.mark.parametrize("name", ["mobilenet_v1_025", "mobilenet_v2_035", "mobilenet_v3_small_050"])
def test_detection_trains_the_network_itself(name: str) -> None:
    torch.manual_seed(0)
    network = Network(reference(name, 96))
    model = detector(network, classes=4).train()
    images = [torch.rand(3, 96, 96), torch.rand(3, 80, 100)]
    targets: list[dict[str, Tensor]] = [
        {"boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]), "labels": torch.tensor([label])}
        for label in (1, 3)
    ]

    def loss_of() -> Tensor:
        found = model(images, targets)
        loss: Tensor = found["bbox_regression"] + found["classification"]
        return loss

    _check_training(network, model, loss_of, 0.005, 3)
    boxes = model.eval()(images)
    assert len(boxes) == 2
    assert boxes[1]["boxes"][:, 2].max() <= 100
    assert set(boxes[0]["labels"].tolist()) <= {1, 2, 3}


def test_detection_is_torchvisions_ssdlite(large: tuple[Network, nn.Module]) -> None:
    network = Network(replace(large[0].architecture, resolution=320))
    load_torchvision_weights(network, large[1].state_dict())
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    # Their backbone without the halved tail that they take where no weights are given.
    backbone = torchvision.models.mobilenet_v3_large(weights=None, norm_layer=nn.BatchNorm2d)
    from torchvision.models.detection import ssdlite

    theirs.backbone = ssdlite._mobilenet_extractor(backbone, 6, nn.BatchNorm2d)
    ours = detector(network, 91, mean=[0.5] * 3, deviation=[0.5] * 3)
    theirs.head = ssdlite.SSDLiteHead([672, 960, 512, 256, 256, 128], [6] * 6, 91, nn.BatchNorm2d)
    state = ours.state_dict()
    assert [each.shape for each in state.values()] == [each.shape for each in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state.values(), strict=True)))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    image = torch.rand(3, 240, 320)
    with torch.no_grad():
        found, wanted = ours.eval()([image])[0], theirs.eval()([image])[0]
    torch.testing.assert_close(found["boxes"], wanted["boxes"])
    torch.testing.assert_close(found["scores"], wanted["scores"])


def _without_last_stride(architecture: Architecture) -> Architecture:
    last = max(number for number, block in enumerate(architecture.blocks) if block.stride == 2)
    blocks = [
        replace(block, stride=1) if number == last else block
        for number, block in enumerate(architecture.blocks)
    ]
    return replace(architecture, blocks=tuple(blocks))


@pytest.mark.parametrize("make", [segmenter, detector, features])
def test_too_few_strides_and_too_small_images_are_named(make: object) -> None:
    assert callable(make)
    small = reference("mobilenet_v3_small_050", 64)
    with pytest.raises(TaskError, match=r"a map of stride 32, but .* has strides 2, 4, 8, 16: it needs more"):
        make(Network(_without_last_stride(small)))
    with pytest.raises(TaskError, match=r"takes images of 24 px: at least 32"):
        make(Network(replace(small, resolution=24)))


def test_a_map_of_one_pixel_is_refused() -> None:
    network = Network(reference("mobilenet_v3_small_050", 48))
    with pytest.raises(TaskError, match=r"at least 64 px, but .* takes 48: .* a single pixel"):
        segmenter(network)
    assert features(network).strides == (4, 8, 16, 32)


def test_strides_can_be_chosen() -> None:
    backbone = features(Network(reference("mobilenet_v2_035", 64)), strides=(2, 16))
    assert [each.shape[1:] for each in backbone(torch.randn(1, 3, 64, 64)).values()] == [
        (8, 32, 32),
        (32, 4, 4),
    ]
    with pytest.raises(TaskError, match=r"a map of stride 12, but .*: it needs other blocks"):
        features(Network(reference("mobilenet_v2_035", 64)), strides=(12,))
