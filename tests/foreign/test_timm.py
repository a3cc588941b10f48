import pytest

from nas.devices.device import LocalTarget
from nas.foreign.network import ForeignNetworkError
from nas.foreign.timing import measure_end_to_end
from nas.foreign.timm import NAMES, is_timm, timm_networks
from nas.runtimes.runtime import Runtime
from tests.foreign.test_torchvision import table

timm = pytest.importorskip("timm")


def test_a_network_has_what_is_published_of_its_checkpoint() -> None:
    (found,) = timm_networks("timm:efficientnet_lite0")
    assert (found.top1, found.weights, found.parameters) == (75.480, "ra_in1k", 4_652_008)
    assert found.macs == 385_187_552  # what nas.cost counts for the same block table


def test_every_name_is_a_model_of_timm_with_that_checkpoint() -> None:
    from nas.foreign.timm import _PUBLISHED

    for name, (tag, top1, side) in _PUBLISHED.items():
        config = timm.get_pretrained_cfg(f"{name}.{tag}", allow_unregistered=False)
        assert config is not None, name
        assert side in (config.input_size[1], (config.test_input_size or config.input_size)[1]), name
        assert 70 < top1 < 80
    assert list(NAMES) == sorted(NAMES, key=lambda name: _PUBLISHED[name][1])


def test_names_are_told_apart_and_unknown_ones_refused() -> None:
    assert is_timm("timm:levit_128")
    assert not is_timm("torchvision:resnet50")
    with pytest.raises(ForeignNetworkError, match="did you mean timm:lcnet_100"):
        timm_networks("timm:lcnet_10")


@pytest.mark.slow
def test_a_network_is_measured_like_any_other_reference(tmp_path: object) -> None:
    references = timm_networks("timm:lcnet_100")
    found = measure_end_to_end(references, table(1.0), LocalTarget(Runtime()), tmp_path / "j.jsonl", rounds=3)  # type: ignore[arg-type, operator]
    # Of the anchor, MobileNetV3-Small, which has a third of its operations and was timed in the same rounds.
    assert 0.5 < found["timm:lcnet_100"] < 10
