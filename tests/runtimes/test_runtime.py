"""One suite over every runtime installed."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from _pytest.mark import ParameterSet

from nas.graphs.executorch import executorch_program
from nas.graphs.litert import litert_model
from nas.graphs.ncnn import ncnn_model
from nas.graphs.onnx import onnx_model
from nas.graphs.quantize import activation_ranges, quantize
from nas.measuring.conditions import PACKAGES
from nas.measuring.models import (
    LiteRTRunner,
    Model,
    NcnnRunner,
    OnnxRunner,
    OpenVinoRunner,
    WeightShape,
    litert_content,
    random_weights,
    runner_of,
)
from nas.runtimes.executorch import ExecuTorchRunner
from nas.runtimes.onnxruntime import timed_graph
from nas.runtimes.runtime import ENGINES, Runtime, RuntimeName, installed
from nas.runtimes.subject import (
    Precision,
    RuntimeUnavailableError,
    Subject,
    borders,
    build_module,
    graph,
    input_shape,
)
from search_spaces.blocks import Head, Stem
from search_spaces.layers import LayerKey
from search_spaces.references import reference
from tests.runtimes.signals import let_signals_through

LAYERS = [
    LayerKey.parse(text)
    for text in (
        "stem_32_o16_k3_hswish",
        "stem_33_o16_k3_relu6",
        "ir_14_i16_x48_o16_k5_s1_se_hswish",
        "ir_14_i16_x48_o24_k3_s2_se_relu",
        "ir_15_i16_x48_o24_k5_s2_relu",
        "ir_14_i16_x0_o16_k3_s1_relu6",
        "ds_14_i16_o32_k3_s2_relu6",
        "skip_14_i16_o32_s2",
        "head_4_i32_c96x1_h64_n10_hswish",
        "head_4_i32_c96x2_h64_n10_relu",
        "head_4_i32_c0x1_h0_n10_relu6",
        "uib_14_i16_x48_o16_a5_k3_s1_se_relu",
        "uib_15_i64_x192_o96_a3_k5_s2_relu",
        "uib_15_i16_x48_o24_a3_k0_s2_relu",
        "uib_14_i16_x48_o24_a0_k0_s2_relu",
        "uib_14_i16_x48_o16_a0_k0_s1_relu",
        "fused_14_i16_x48_o24_k3_s2_relu",
        "fused_14_i16_x48_o16_k3_s1_se_relu6",
        "pair_15_i16_x48_o24_k3_s2_relu",
        "head_4_i32_c96x1_h64b1_n10_relu",
    )
]
NETWORK = reference("mobilenet_v3_small_035", 32, 10)
HAS_LITERT = pytest.mark.skipif(
    "litert" not in installed(), reason="needs pip install 'mobilenet-nas[litert]'"
)
HAS_EXECUTORCH = pytest.mark.skipif(
    "executorch" not in installed(), reason="needs pip install 'mobilenet-nas[executorch]'"
)
TAKES_LONG = ("torch_compile",)


def every_runtime(precision: Precision) -> list[ParameterSet]:
    """Those that have the precision; marked where they take long or are not installed."""
    found = []
    for name in ENGINES:
        try:
            Runtime(name, precision)
        except RuntimeUnavailableError:
            continue
        lacks = name not in installed(precision) or (name == "torch_compile" and shutil.which("g++") is None)
        marks = [pytest.mark.slow] if name in TAKES_LONG else []
        marks += [pytest.mark.skipif(lacks, reason=f"{name} is not installed")]
        found.append(pytest.param(name, marks=marks))
    return found


def graph_of(subject: Subject) -> onnx.ModelProto:
    """With weights that let a signal through, as trained ones do."""
    torch.manual_seed(0)
    module = build_module(subject).train()
    let_signals_through(module)
    module(torch.randn(8, *input_shape(subject)[1:]))
    return onnx_model(module.eval(), input_shape(subject))


def image_of(subject: Subject) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(input_shape(subject)).astype(np.float32)


def output_of(runner: object) -> np.ndarray:
    """What a runner gives, feature maps in NCHW."""
    assert callable(runner)
    found = runner()
    if isinstance(runner, OnnxRunner | LiteRTRunner | OpenVinoRunner | NcnnRunner | ExecuTorchRunner):
        found = runner.output()
        nhwc = isinstance(runner, LiteRTRunner | ExecuTorchRunner) and found.ndim == 4
        found = found.transpose(0, 3, 1, 2) if nhwc else found
    elif isinstance(found, (list, tuple)):
        found = found[0]
    return np.asarray(found)


def run_onnx(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": image})[0])


@pytest.mark.parametrize("name", every_runtime("fp32"))
def test_layers_and_networks_run_again_and_again(name: RuntimeName) -> None:
    subjects: tuple[Subject, ...] = (LAYERS[2], NETWORK) if name in TAKES_LONG else (*LAYERS, NETWORK)
    for subject in subjects:
        runner = Runtime(name).runner(subject)
        first, second = output_of(runner).copy(), output_of(runner)
        expected = build_module(subject)(torch.zeros(input_shape(subject)))
        assert first.shape == tuple(expected.shape)
        assert np.isfinite(first).all()
        assert first.std() > 0
        assert np.array_equal(first, second)


@pytest.mark.parametrize("name", every_runtime("int8"))
def test_int8_layers_have_the_ends_they_have_in_a_network(name: RuntimeName) -> None:
    subjects: list[Subject] = [*LAYERS, NETWORK]
    for subject in subjects:
        found = output_of(Runtime(name, "int8").runner(subject))
        ends = borders(subject)
        assert (found.dtype != np.float32) == ends.output
        assert found.std() > 0
    assert [borders(LAYERS[index]) for index in (0, 2, 8)] == [
        type(ends)(False, True),
        type(ends)(True, True),
        type(ends)(True, False),
    ]


@pytest.mark.parametrize(
    "name", ["torch", *(each for each in every_runtime("fp32") if each.values[0] in TAKES_LONG)]
)
def test_what_runs_is_the_module(name: RuntimeName) -> None:
    for subject in (LAYERS[2], NETWORK):
        torch.manual_seed(0)
        found = output_of(Runtime(name).runner(subject))
        torch.manual_seed(0)
        image = torch.randn(input_shape(subject), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = build_module(subject)(image).numpy()
        assert np.allclose(found, expected, atol=1e-4)


def test_onnx_runtime_transposes_an_int8_layer_no_more_than_in_a_network(tmp_path: Path) -> None:
    for index, key in enumerate(LAYERS):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / f"{index}.onnx")
        model = timed_graph(key, "int8").SerializeToString()
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        assert kinds.count("Transpose") == (1 if isinstance(key.part, Stem | Head) else 0), str(key)
        ends = borders(key)
        fewest = (not ends.input) + kinds.count("HardSwish") + kinds.count("HardSigmoid")
        assert kinds.count("QuantizeLinear") == fewest, str(key)


@pytest.mark.skipif("ncnn" not in installed(), reason="ncnn is not installed")
@pytest.mark.parametrize("subject", [*LAYERS, NETWORK], ids=lambda subject: str(subject)[:40])
def test_ncnn_gives_what_the_onnx_graph_gives(subject: Subject) -> None:
    model, image = graph_of(subject), image_of(subject)
    expected = run_onnx(model, image)
    text, weights = ncnn_model(model)
    runner = runner_of("ncnn", Model(text.encode(), weights), threads=1)
    assert isinstance(runner, NcnnRunner)
    runner.take(image)
    assert np.abs(output_of(runner) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.skipif("openvino" not in installed(), reason="openvino is not installed")
@pytest.mark.parametrize("subject", [LAYERS[0], LAYERS[2], LAYERS[8], NETWORK], ids=lambda s: str(s)[:40])
def test_openvino_gives_what_the_onnx_graph_gives(subject: Subject) -> None:
    model, image = graph_of(subject), image_of(subject)
    expected = run_onnx(model, image)
    runner = OpenVinoRunner(model.SerializeToString(), threads=1)
    runner.take(image)
    assert np.abs(output_of(runner) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.skipif("openvino" not in installed(), reason="openvino is not installed")
def test_openvino_reports_nothing_to_anybody() -> None:
    lines = [
        "import multiprocessing.process as process, sys",
        "process.BaseProcess.start = lambda self: sys.exit('it reports')",
        "from nas.runtimes.runtime import Runtime",
        "from search_spaces.layers import LayerKey",
        f"Runtime('openvino').runner(LayerKey.parse('{LAYERS[0]}'))()",
        "import openvino, threading",
        "print(openvino.__version__, threading.active_count())",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stdout.split()[-1] == "1", done


@HAS_LITERT
@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("subject", [*LAYERS, NETWORK], ids=lambda subject: str(subject)[:40])
def test_litert_gives_what_the_onnx_graph_gives(subject: Subject, outside: bool) -> None:
    model, image = graph_of(subject), image_of(subject)
    expected = run_onnx(model, image)
    runner = LiteRTRunner(litert_content(*litert_model(model, weights_outside=outside)), threads=1)
    runner.take(image.transpose(0, 2, 3, 1))
    assert np.abs(output_of(runner) - expected).max() < 1e-5 * np.abs(expected).max()
    assert runner.undelegated == ()


@HAS_LITERT
@pytest.mark.parametrize("subject", [*LAYERS, NETWORK], ids=lambda subject: str(subject)[:40])
def test_litert_int8_is_as_close_to_fp32_as_onnx_runtimes(subject: Subject) -> None:
    model, image = graph_of(subject), image_of(subject)
    expected = run_onnx(model, image)
    runner = LiteRTRunner(litert_content(*litert_model(model, activation_ranges(model, [image]))), threads=1)
    runner.take(image.transpose(0, 2, 3, 1))
    error = np.abs(output_of(runner) - expected).max()
    theirs = np.abs(run_onnx(quantize(model, [image]), image) - expected).max()
    assert error < max(0.05 * np.abs(expected).max(), 1.5 * theirs)


@HAS_LITERT
def test_only_hard_swish_in_int8_is_left_to_slow_kernels() -> None:
    def left(text: str, precision: str) -> tuple[str, ...]:
        runner = Runtime("litert", precision).runner(LayerKey.parse(text))  # type: ignore[arg-type]
        assert isinstance(runner, LiteRTRunner)
        return runner.undelegated

    assert left("ir_14_i16_x48_o16_k5_s1_se_hswish", "int8") == ("HARD_SWISH", "HARD_SWISH")
    assert left("ir_14_i16_x48_o16_k5_s1_se_hswish", "fp32") == ()
    assert left("ir_14_i16_x48_o24_k3_s2_se_relu", "int8") == ()


@HAS_LITERT
@pytest.mark.parametrize("index", [0, 2, 8, None])
def test_split_hard_swish_is_delegated_and_gives_the_same(index: int | None) -> None:
    subject = NETWORK if index is None else LAYERS[index]
    model, image = graph_of(subject), image_of(subject)
    expected = run_onnx(model, image)
    exact = LiteRTRunner(litert_content(*litert_model(model, split_hswish=True)), threads=1)
    exact.take(image.transpose(0, 2, 3, 1))
    assert np.abs(output_of(exact) - expected).max() < 1e-5 * np.abs(expected).max()
    ranges = activation_ranges(model, [image])
    errors = []
    for split in (True, False):
        runner = LiteRTRunner(litert_content(*litert_model(model, ranges, split_hswish=split)), threads=1)
        runner.take(image.transpose(0, 2, 3, 1))
        errors.append(np.abs(output_of(runner) - expected).max())
    assert errors[0] < max(0.05 * np.abs(expected).max(), 1.5 * errors[1])
    timed = Runtime("litert_split", "int8").runner(subject)
    assert isinstance(timed, LiteRTRunner)
    assert timed.undelegated == ()


@HAS_LITERT
def test_a_litert_model_in_one_piece_reads_like_any_other(tmp_path: object) -> None:
    from ai_edge_litert import schema_py_generated as schema

    content = litert_content(*litert_model(graph(NETWORK), {}, weights_outside=False))
    model = schema.ModelT.InitFromPackedBuf(content)
    assert content[4:8] == b"TFL3"
    assert len(model.subgraphs) == 1
    assert all(buffer.offset == 0 for buffer in model.buffers)


def every_board_runtime() -> list[ParameterSet]:
    return [
        pytest.param(*each.values, precision, marks=each.marks)
        for precision in get_args(Precision)
        for each in every_runtime(precision)
        if each.values[0] in PACKAGES
    ]


@pytest.mark.parametrize(("name", "precision"), every_board_runtime())
def test_what_a_board_is_sent_runs_with_weights_made_there(name: RuntimeName, precision: Precision) -> None:
    for subject in (LAYERS[2], NETWORK):
        model = Runtime(name, precision).model(subject)
        described: list[WeightShape] = [
            {"name": each, "shape": list(values.shape), "type": str(values.dtype)}
            for each, values in model.weights.items()
        ]
        made_there = model._replace(weights=random_weights(described, seed=1))
        found = output_of(runner_of(name, made_there, threads=1))
        assert found.std() > 0
        assert np.isfinite(found.astype(np.float32)).all()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_every_layer_is_compiled_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where all layers shared one piece of code the third would go beyond the limit and run eagerly.
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    for key in (LAYERS[2], LAYERS[6], LAYERS[7]):
        assert np.isfinite(output_of(Runtime("torch_compile").runner(key))).all()


def test_without_a_compiler_torch_compile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeUnavailableError, match=r"needs a C\+\+ compiler: install one"):
        Runtime("torch_compile").runner(LAYERS[0])


@pytest.mark.parametrize("name", ["torch", "torch_compile", "executorch"])
def test_a_runtime_without_int8_names_those_that_have_it(name: RuntimeName) -> None:
    line = f"runtime {name} has no int8 here; use runtime=onnxruntime or runtime=litert or"
    with pytest.raises(RuntimeUnavailableError, match=line):
        Runtime(name, "int8")


def test_an_unknown_runtime_is_answered_with_the_nearest() -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"unknown runtime 'lite-rt'; did you mean litert\?"):
        Runtime("lite-rt")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ENGINES)
def test_a_runtime_that_is_not_installed_names_its_extra(
    name: RuntimeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    line = rf"runtime {name} is not installed; install it with: pip install 'mobilenet-nas\[\w+\]'"
    with pytest.raises(RuntimeUnavailableError, match=line):
        Runtime(name, "int8" if name == "litert_split" else "fp32").runner(LAYERS[0])


@pytest.mark.parametrize("subject", [LAYERS[2], NETWORK], ids=["layer", "network"])
def test_what_a_runtime_refuses_is_named_in_one_line(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("operator 7\nis not known")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    name = str(subject) if isinstance(subject, LayerKey) else subject.id
    with pytest.raises(RuntimeUnavailableError, match=f"cannot run .*{name}: operator 7 is not known; take"):
        Runtime().runner(subject)


@HAS_EXECUTORCH
@pytest.mark.parametrize("subject", [*LAYERS, NETWORK], ids=lambda subject: str(subject)[:40])
def test_executorch_gives_what_the_onnx_graph_gives(subject: Subject) -> None:
    model, image, ends = graph_of(subject), image_of(subject), borders(subject)
    expected = run_onnx(model, image)
    whole = ExecuTorchRunner(executorch_program(model), image.shape, threads=1)
    whole.take(image)
    assert np.abs(whole.output() - expected).max() < 1e-5 * np.abs(expected).max()
    inner = image.transpose(0, 2, 3, 1) if ends.input else image
    layer = ExecuTorchRunner(executorch_program(model, borders=ends), inner.shape, threads=1)
    layer.take(inner)
    assert np.abs(output_of(layer) - expected).max() < 1e-5 * np.abs(expected).max()


@HAS_EXECUTORCH
@pytest.mark.slow
@pytest.mark.parametrize("subject", [LAYERS[2], LAYERS[8], LAYERS[16], NETWORK], ids=lambda s: str(s)[:40])
def test_executorch_is_given_the_operators_of_its_exporter(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executorch.backends.xnnpack import xnnpack_preprocess
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize
    from executorch.exir import to_edge_transform_and_lower

    operators: Counter[str] = Counter()
    serialize = xnnpack_graph_serialize.serialize_xnnpack_binary

    def counted(graph: object, constants: bytearray) -> bytes:
        for node in graph.xnodes:  # type: ignore[attr-defined]
            operators[f"{type(node.xnode_union).__name__} {node.output_min_max is not None}"] += 1
        return bytes(serialize(graph, constants))

    for module in (xnnpack_preprocess, xnnpack_graph_serialize):
        monkeypatch.setattr(module, "serialize_xnnpack_binary", counted)
    module = build_module(subject)
    exported = torch.export.export(module, (torch.from_numpy(image_of(subject)),))
    to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    theirs = operators.copy()
    operators.clear()
    executorch_program(onnx_model(module, input_shape(subject)))
    # It takes a pooled map out of the delegate to flatten it; here it is one transposition more.
    for each in (theirs, operators):
        each.pop("XNNStaticTranspose False", None)
    assert operators == theirs


@HAS_EXECUTORCH
def test_executorch_uses_the_threads_asked_for() -> None:
    from executorch.extension.pybindings import portable_lib

    for threads in (1, 2):
        Runtime("executorch", threads=threads).runner(LAYERS[2])
        assert portable_lib._threadpool_get_thread_count() == threads


@pytest.mark.parametrize("threads", [1, 2])
def test_onnx_runtime_uses_the_threads_asked_for(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    session = onnxruntime.InferenceSession

    def opened(model: bytes, options: onnxruntime.SessionOptions, **others: object) -> object:
        asked.append(options.intra_op_num_threads)
        return session(model, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    Runtime(threads=threads).runner(LAYERS[0])()
    assert asked == [threads]


@HAS_LITERT
@pytest.mark.parametrize("threads", [1, 2])
def test_litert_uses_the_threads_asked_for(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from ai_edge_litert import interpreter

    asked: list[int] = []
    made = interpreter.Interpreter

    def opened(model_content: bytes, num_threads: int) -> object:
        asked.append(num_threads)
        return made(model_content=model_content, num_threads=num_threads)

    monkeypatch.setattr(interpreter, "Interpreter", opened)
    Runtime("litert", threads=threads).runner(LAYERS[0])()
    assert asked == [threads]
