import random

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from nas.cost import cost
from nas.graphs.onnx import onnx_model
from nas.graphs.quantize import quantize
from nas.network import Network, build_layer
from nas.runtimes.runtime import Runtime
from nas.runtimes.subject import PRECISIONS, RuntimeUnavailableError
from search_spaces.blocks import Block
from search_spaces.layers import LayerKey, layer_keys, reachable_layer_keys
from search_spaces.references import reference
from search_spaces.space import SearchSpace


def _output(model: onnx.ModelProto, images: torch.Tensor) -> torch.Tensor:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": images.numpy()})[0])


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v1",
        "mobilenet_v2_050",
        "mobilenet_v3_large_150d",
        "mobilenet_v3_small",
        "mobilenetv4_conv_small",
        "mobilenetv4_conv_medium_050",
    ],
)
def test_the_graph_computes_what_the_network_computes(name: str) -> None:
    torch.manual_seed(1)
    network = Network(reference(name, 64)).train()
    with torch.no_grad():
        network(torch.randn(8, 3, 64, 64))  # moves the running statistics
        for each in network.parameters():
            each.add_(0.02 * torch.randn_like(each))
    network.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = network(images)
    assert torch.allclose(_output(onnx_model(network, images.shape), images), expected, rtol=1e-4, atol=1e-4)


def test_every_kind_of_layer_has_a_graph(mobilenet_space: SearchSpace) -> None:
    keys = sorted(reachable_layer_keys(mobilenet_space.restricted([64])), key=str)
    skip = Block("skip", 1, 24, 24, 40, 2, "relu", False, False)
    for key in [
        *random.Random(2).sample(keys, 25),
        LayerKey(28, 24, skip),
        *layer_keys(reference("mobilenet_v1", 64))[:3],
    ]:
        layer = build_layer(key).eval()
        images = torch.randn(key.input_shape)
        with torch.inference_mode():
            expected = layer(images)
        assert torch.allclose(
            _output(onnx_model(layer, key.input_shape), images), expected, rtol=1e-4, atol=1e-4
        )


def test_weights_left_out_give_the_same_output() -> None:
    key = layer_keys(reference("mobilenet_v3_large", 64))[8]
    layer = build_layer(key).eval()
    weights: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    model = onnx_model(layer, key.input_shape, external=weights)
    assert len(model.SerializeToString()) < 5_000
    options = onnxruntime.SessionOptions()
    options.add_external_initializers(
        list(weights), [onnxruntime.OrtValue.ortvalue_from_numpy(each) for each in weights.values()]
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    images = torch.randn(key.input_shape)
    with torch.inference_mode():
        expected = layer(images)
    found = torch.from_numpy(session.run(None, {"input": images.numpy()})[0])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_run_is_said() -> None:
    with pytest.raises(RuntimeUnavailableError, match="unknown runtime 'tflite'"):
        Runtime("tflite")  # type: ignore[arg-type]
    with pytest.raises(RuntimeUnavailableError, match="has no int8"):
        Runtime("torch", "int8")
    with pytest.raises(RuntimeUnavailableError, match="threads"):
        Runtime(threads=0)
    with pytest.raises(RuntimeUnavailableError, match="unknown precision"):
        Runtime(precision="fp16")  # type: ignore[arg-type]
    assert PRECISIONS == ("fp32", "int8")


def test_opencv_is_not_misled_about_gates() -> None:
    """With beta written out OpenCV's DNN takes the gate and its product for a hard swish."""
    model = onnx_model(build_layer(layer_keys(reference("mobilenet_v3_small"))[1]).eval(), (1, 16, 56, 56))
    (gate,) = [node for node in model.graph.node if node.op_type == "HardSigmoid"]
    assert [attribute.name for attribute in gate.attribute] == ["alpha"]


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_large", "mobilenet_v2_035"])
def test_the_size_of_a_file_is_that_of_its_weights(name: str) -> None:
    architecture = reference(name)
    model = onnx_model(Network(architecture).eval(), (1, 3, 224, 224))
    # A folded norm leaves one value of its two; the graph itself takes some thousand bytes.
    written = len(model.SerializeToString())
    assert written == pytest.approx(4 * cost(architecture).parameters, rel=0.02)
    images = [np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)]
    int8 = len(quantize(model, images).SerializeToString())
    # Biases and scales of single channels stay wider: a tenth more in small networks.
    assert int8 == pytest.approx(cost(architecture).parameters, rel=0.12)
