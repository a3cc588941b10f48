import math
from dataclasses import replace

import pytest
import torch

from nas.accuracy.proxy import ProxyAccuracy, naswot, proxy_score, synflow
from nas.accuracy.source import AccuracyError
from nas.cost import cost
from nas.network import Network
from search_spaces.references import reference

SMALL = reference("mobilenet_v3_small_050")


def test_macs_are_the_cost() -> None:
    assert proxy_score(SMALL, "macs", 32) == pytest.approx(
        torch.tensor(cost(SMALL).macs).log().item(), rel=1e-6
    )


@pytest.mark.parametrize("name", ["naswot", "synflow"])
def test_scores_repeat_and_leave_the_generator_alone(name: str) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second, other = (proxy_score(SMALL, name, 32, seed) for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert first == second != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_synflow_prefers_the_wider_network() -> None:
    wide, narrow = (
        proxy_score(reference(name), "synflow", 32) for name in ("mobilenet_v2", "mobilenet_v2_035")
    )
    assert wide > narrow


def test_synflow_sums_weight_times_gradient_of_one_linear_path() -> None:
    # A chain of two 1x1 convolutions without bias: both layers carry the whole output.
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.Conv2d(2, 2, 1, bias=False))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(-0.5)
    # Output: 2 channels x 4 pixels x (0.5 * 2) * (0.5 * 3) = 12; twice that, once for each layer.
    assert synflow(network, 2) == pytest.approx(torch.tensor(24.0).log().item())


def test_naswot_is_lower_for_images_that_are_alike() -> None:
    torch.manual_seed(0)
    network = Network(replace(SMALL, resolution=32))
    different = torch.randn(6, 3, 32, 32)
    alike = different[:1] + 0.01 * different
    assert naswot(network, different) > naswot(network, alike)


def test_unknown_proxy() -> None:
    with pytest.raises(AccuracyError, match="unknown proxy 'grad': known are naswot, synflow, macs"):
        ProxyAccuracy("grad")  # type: ignore[arg-type]


def test_a_score_that_ranks_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.accuracy.proxy.proxy_score", lambda *_: -math.inf)
    with pytest.raises(AccuracyError, match="is -inf: it ranks nothing"):
        ProxyAccuracy("synflow").accuracy(SMALL)
