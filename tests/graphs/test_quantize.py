import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from nas.graphs.onnx import onnx_model
from nas.graphs.quantize import Borders, activation_ranges, quantize
from nas.runtimes.subject import borders, build_module, graph, input_shape
from search_spaces.layers import LayerKey
from search_spaces.references import reference

SUBJECTS = [
    *map(
        LayerKey.parse,
        (
            "stem_32_o16_k3_hswish",
            "stem_32_o16_k3_relu6",
            "ir_14_i16_x48_o16_k5_s1_se_hswish",
            "ir_14_i16_x48_o24_k3_s2_se_relu",
            "ir_14_i16_x0_o16_k3_s1_relu6",
            "ds_14_i16_o32_k3_s2_relu6",
            "skip_14_i16_o32_s2",
            "head_4_i32_c96x1_h64_n10_hswish",
            "head_4_i32_c96x2_h64_n10_relu",
            "head_4_i32_c0x1_h0_n10_relu6",
        ),
    ),
    reference("mobilenet_v3_small_050", 32, 10),
]


class Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: list[np.ndarray]) -> None:
        self._left = iter([{"input": image} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def random_images(subject: object, count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    shape = input_shape(subject)  # type: ignore[arg-type]
    return [generator.standard_normal(shape).astype(np.float32) for _ in range(count)]


def nodes(model: onnx.ModelProto) -> Counter[tuple[object, ...]]:
    return Counter((each.op_type, *each.input, "->", *each.output) for each in model.graph.node)


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"input": image})
    return np.asarray(found)


@pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 28),
    reason="the quantizer that ours is compared with writes other nodes behind a pooling before 1.28",
)
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: str(subject)[:40])
def test_graph_and_values_are_those_of_onnxruntimes_quantizer(subject: object, tmp_path: Path) -> None:
    model = onnx_model(build_module(subject), input_shape(subject))  # type: ignore[arg-type]
    images = random_images(subject, 2)
    onnx.save(model, str(tmp_path / "fp32.onnx"))
    logging.disable(logging.WARNING)
    quantize_static(
        str(tmp_path / "fp32.onnx"),
        str(tmp_path / "int8.onnx"),
        Images(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    logging.disable(logging.NOTSET)
    expected = onnx.load(str(tmp_path / "int8.onnx"))
    found = quantize(model, images)
    onnx.checker.check_model(found, full_check=True)
    assert nodes(found) == nodes(expected)
    types = {each.name: (each.data_type, tuple(each.dims)) for each in expected.graph.initializer}
    assert {each.name: (each.data_type, tuple(each.dims)) for each in found.graph.initializer} == types
    exact, ours, theirs = (run(each, images[0]) for each in (model, found, expected))
    scale = np.abs(exact).max()
    assert np.abs(ours - exact).max() < max(0.05 * scale, 1.5 * np.abs(theirs - exact).max())


def test_what_is_timed_has_the_nodes_of_what_is_exported() -> None:
    for subject in SUBJECTS:
        model = onnx_model(build_module(subject), input_shape(subject))  # type: ignore[arg-type]
        ends = borders(subject)  # type: ignore[arg-type]
        exported = quantize(model, random_images(subject, 1), ends)
        timed = graph(subject, "int8")  # type: ignore[arg-type]
        assert nodes(timed) == nodes(exported)
        image = random_images(subject, 1)[0]
        if ends.input:
            image = np.clip(image * 50 + 128, 0, 255).astype(np.uint8)
        onnx.checker.check_model(timed, full_check=True)
        assert np.isfinite(run(timed, image)).all()


def test_int8_ends_leave_out_what_a_network_does_not_do_there() -> None:
    key = LayerKey.parse("ir_14_i16_x48_o16_k5_s1_se_hswish")
    model = onnx_model(build_module(key), key.input_shape)
    (image,) = random_images(key, 1)
    whole, within = quantize(model, [image]), quantize(model, [image], Borders(True, True))
    left_out = Counter(each.op_type for each in whole.graph.node)
    left_out.subtract(each.op_type for each in within.graph.node)
    assert +left_out == {"QuantizeLinear": 1, "DequantizeLinear": 1}
    # Fed what the missing node would have made, it gives what the other missing node would have been fed.
    values = {each.name: onnx.numpy_helper.to_array(each) for each in within.graph.initializer}

    def scaled(name: str) -> tuple[float, float]:
        return float(values[f"{name}_scale"]), float(values[f"{name}_zero_point"])

    (scale, zero), (out_scale, out_zero) = scaled("input"), scaled("output")
    integers = np.clip(np.rint(image / scale) + zero, 0, 255).astype(np.uint8)
    found = (run(within, integers).astype(np.float32) - out_zero) * out_scale
    assert np.abs(found - run(whole, image)).max() <= out_scale * 1.01


def test_int8_weights_take_a_quarter() -> None:
    network = reference("mobilenet_v2", 64)
    assert graph(network, "int8").ByteSize() < 0.3 * graph(network, "fp32").ByteSize()


def test_ranges_cover_all_images() -> None:
    subject = SUBJECTS[0]
    model = onnx_model(build_module(subject), input_shape(subject))  # type: ignore[arg-type]
    one, two = random_images(subject, 2)
    ranges = activation_ranges(model, [one, two])
    assert ranges["input"] == (min(one.min(), two.min()), max(one.max(), two.max()))
    assert ranges["output"][1] == max(run(model, one).max(), run(model, two).max())
    assert ranges["output"][0] >= -0.376  # the lowest value of h-swish is -3/8


def test_channels_without_weights_and_with_a_large_bias_survive() -> None:
    key = LayerKey.parse("skip_14_i16_o32_s2")
    module = build_module(key)
    model = onnx_model(module, key.input_shape)
    weight, bias = (each for each in model.graph.initializer if len(each.dims) in (1, 4))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0], values[1] = 0, 1e-12
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    biases = np.full(32, 5, np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(biases, bias.name))
    (image,) = random_images(key, 1)
    found, exact = (run(each, image)[:, :2] for each in (quantize(model, [image]), model))
    assert np.abs(found - exact).max() < 0.05
