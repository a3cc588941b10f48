import shutil
from importlib.util import find_spec

import pytest
import torch

from nas.layers import LayerKey
from nas.runtimes.runtime import Runtime, RuntimeName, RuntimeUnavailableError, build_module, input_shape
from search_spaces.references import reference

LAYERS = [
    LayerKey.parse("ir_8_i8_x16_o8_k3_s1_se_hswish"),
    LayerKey.parse("ds_8_i8_o16_k3_s2_relu6"),
    LayerKey.parse("skip_8_i8_o16_s2"),
]
NETWORK = reference("mobilenet_v3_small_035", 32, 10)
NEEDS_EXECUTORCH = pytest.mark.skipif(
    find_spec("executorch") is None, reason="needs pip install 'mobilenet-nas[executorch]'"
)
RUNTIMES = [
    "torch",
    pytest.param(
        "torch_compile",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
        ],
    ),
    pytest.param("executorch", marks=[pytest.mark.slow, NEEDS_EXECUTORCH]),
]


def output_of(found: object) -> torch.Tensor:
    return found if isinstance(found, torch.Tensor) else found[0]  # type: ignore[index,no-any-return]


@pytest.mark.parametrize("name", RUNTIMES)
def test_layers_and_networks_run_and_give_what_their_modules_give(name: RuntimeName) -> None:
    for subject in (LAYERS[0], NETWORK):
        torch.manual_seed(0)
        runner = Runtime(name).runner(subject)
        found = output_of(runner())
        torch.manual_seed(0)
        image = torch.randn(input_shape(subject), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = build_module(subject)(image)
        assert torch.allclose(found, expected, atol=1e-4)
        assert torch.equal(output_of(runner()), found)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_every_layer_is_compiled_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where all layers shared one piece of code the third would go beyond the limit and run eagerly.
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    for key in LAYERS:
        assert torch.isfinite(output_of(Runtime("torch_compile").runner(key)())).all()


def test_without_a_compiler_torch_compile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeUnavailableError, match=r"needs a C\+\+ compiler: install one"):
        Runtime("torch_compile").runner(LAYERS[0])


@pytest.mark.parametrize("name", ["torch", "torch_compile", "executorch"])
def test_int8_is_for_onnx_runtime_only(name: RuntimeName) -> None:
    with pytest.raises(RuntimeUnavailableError, match=f"runtime {name} has no int8 here; use runtime=onnxr"):
        Runtime(name, "int8")


@NEEDS_EXECUTORCH
@pytest.mark.slow
def test_executorch_uses_the_threads_asked_for() -> None:
    from executorch.extension.pybindings import portable_lib

    for threads in (1, 2):
        Runtime("executorch", threads=threads).runner(LAYERS[2])
        assert portable_lib._threadpool_get_thread_count() == threads


@pytest.mark.parametrize("threads", [1, 2])
def test_onnx_runtime_uses_the_threads_asked_for(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    asked: list[int] = []
    session = onnxruntime.InferenceSession

    def opened(model: bytes, options: onnxruntime.SessionOptions, **others: object) -> object:
        asked.append(options.intra_op_num_threads)
        return session(model, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    assert len(Runtime(threads=threads).runner(LAYERS[0])()) == 1  # type: ignore[arg-type]
    assert asked == [threads]
