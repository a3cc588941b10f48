"""Models of each runtime, ready to run: from what a kit or a profile holds to a call that takes one image.

A model is a skeleton and its large weights. Runtimes differ in how the two become one:
ONNX Runtime reads a protobuf message, LiteRT a flatbuffer with the weights behind it.

Needs only Python 3.9, numpy and the runtime: this file also runs on boards, inside the portable kit.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from nas.measuring.rounds import Runner

# How layers are timed; tables of another protocol are not mixed with this one's. 1: ONNX Runtime with memory
# of its own for every layer, and fp32 at both ends of int8 layers.
PROTOCOL = 2
# Weights in a LiteRT model begin at multiples of this many bytes.
ALIGNMENT = 64
_TENSOR_TYPES = {"float32": 1, "int8": 3}  # onnx.TensorProto.DataType

# Numbers of any kind: fp32, or integers of an int8 model.
Values = NDArray[np.generic]
Weights = Mapping[str, Values]


class Model(NamedTuple):
    """A layer or network as a runtime takes it.

    Attributes:
        skeleton: the model without its large weights.
        weights: those, by name, in the order in which the model lists them.
    """

    skeleton: bytes
    weights: Weights


class WeightShape(TypedDict):
    """A weight without its values, as a kit's manifest says it."""

    name: str
    shape: list[int]
    type: str


def random_weights(described: Sequence[WeightShape], seed: int) -> dict[str, Values]:
    """Weights by name, of the shapes and types described; every model gets memory of its own.

    Args:
        described: for each its ``name``, ``shape`` and ``type`` (``float32`` or ``int8``).
        seed: of the values.
    """
    random = np.random.default_rng(seed)
    found: dict[str, Values] = {}
    for each in described:
        shape = each["shape"]
        if each["type"] == "int8":
            found[each["name"]] = random.integers(-127, 128, size=shape, dtype=np.int8)
        else:
            fan_in = max(1, int(np.prod(shape[1:])))
            values = random.standard_normal(shape, dtype=np.float32)
            found[each["name"]] = values * np.float32((2 / fan_in) ** 0.5)
    return found


def onnx_content(skeleton: bytes, weights: Weights) -> bytes:
    """An ONNX model and the initialisers it lacks.

    Serialised protobuf messages merge by concatenation, so the weights are appended as a second
    ``graph`` field; no protobuf library is needed.
    """
    tensors = []
    for name, values in weights.items():
        # TensorProto: 1 dims, 2 data_type, 8 name, 9 raw_data. GraphProto: 5 initializer.
        tensor = b"".join(b"\x08" + _varint(size) for size in values.shape)
        tensor += b"\x10" + _varint(_TENSOR_TYPES[str(values.dtype)])
        tensor += _bytes_field(8, name.encode()) + _bytes_field(9, values.tobytes())
        tensors.append(_bytes_field(5, tensor))
    return skeleton + _bytes_field(7, b"".join(tensors)) if tensors else skeleton  # ModelProto: 7 graph


def litert_content(skeleton: bytes, weights: Weights) -> bytes:
    """A LiteRT flatbuffer and the weights whose offsets behind it it names, in their order."""
    parts = [skeleton]
    for values in weights.values():
        parts += [bytes(-len(parts[-1]) % ALIGNMENT), values.tobytes()]
    return b"".join(parts)


class OnnxRunner:
    """A call that runs an ONNX model once on a fixed random image, with ONNX Runtime.

    All models of a process share one arena of memory, and inputs and outputs stay where they are: feature
    maps lie in the cache as they do within a network, where an allocation of its own would make every
    layer timed alone fetch them from further away (5 to 10 % of a network, ``results/runtimes.md``).

    Args:
        model: a serialised model, or the path of one.
        threads: threads within an operator; operators run one after the other.
        seed: of the input.
        weights: weights that were left out of the model, by name.
    """

    def __init__(
        self, model: bytes | str, threads: int, seed: int = 0, weights: Weights | None = None
    ) -> None:
        import onnxruntime

        kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
        memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
        onnxruntime.create_and_register_allocator(memory, None)  # again has no effect
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Else the threads of one model would spin on while the next is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if weights:
            shared = [onnxruntime.OrtValue.ortvalue_from_numpy(values) for values in weights.values()]
            options.add_external_initializers(list(weights), shared)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        described = self._session.get_inputs()[0]
        image = random_image(described.shape, "uint8" if "uint8" in described.type else "float32", seed)
        self._binding = self._session.io_binding()
        outputs = [each.name for each in self._session.get_outputs()]
        for name in outputs:
            self._binding.bind_output(name)
        self.take(image)
        # The first run made the outputs: they are written to the same places from now on.
        for number, value in enumerate(self._binding.get_outputs()):
            self._binding.bind_ortvalue_output(outputs[number], value)

    def __call__(self) -> None:
        """Run once."""
        self._session.run_with_iobinding(self._binding)

    def output(self) -> Values:
        """The output of the last run, the first of several."""
        found: Values = self._binding.get_outputs()[0].numpy()
        return found

    def take(self, image: Values) -> None:
        """Run on another image, now and from now on: of the input's shape and type."""
        self._image = np.ascontiguousarray(image)  # the binding does not keep it
        self._binding.bind_cpu_input(self._session.get_inputs()[0].name, self._image)
        self()


class OpenVinoRunner:
    """A call that runs an ONNX model once on a fixed random image, with OpenVINO.

    Args:
        model: a serialised model.
        threads: threads within an operator.
        seed: of the input.
    """

    def __init__(self, model: bytes, threads: int, seed: int = 0) -> None:
        # When it is imported OpenVINO reports that to its maker from a process of its own, unasked and while
        # we measure. It does without where the package that reports is not to be had.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model), "CPU", settings)
        self._request = compiled.create_infer_request()
        taken = compiled.input(0)
        self._start, self._wait = self._request.start_async, self._request.wait
        self.take(random_image(list(taken.shape), np.dtype(taken.element_type.to_dtype()).name, seed))

    def __call__(self) -> None:
        """Run once."""
        self._start()
        self._wait()

    def output(self) -> Values:
        """The output of the last run."""
        found: Values = self._request.get_output_tensor().data
        return found

    def take(self, image: Values) -> None:
        """Run on another image, now and from now on: of the input's shape and type."""
        import openvino

        self._image = np.ascontiguousarray(image)
        self._request.set_input_tensor(openvino.Tensor(self._image, shared_memory=True))
        self()


def ncnn_content(skeleton: bytes, weights: Weights) -> bytes:
    """The text of a ``.param`` file, a zero byte, and the ``.bin`` file that belongs to it."""
    parts = [skeleton, b"\0"]
    for values in weights.values():
        # Weights, not biases, are preceded by a word that says how they are stored: 0 is fp32.
        parts += [b"\0\0\0\0" if values.ndim > 1 else b"", values.tobytes()]
    return b"".join(parts)


class NcnnRunner:
    """A call that runs an ncnn model once on a fixed random image.

    Args:
        model: see :func:`ncnn_content`.
        threads: threads within an operator.
        seed: of the input.
    """

    def __init__(self, model: bytes, threads: int, seed: int = 0) -> None:
        import ncnn

        text, _, weights = model.partition(b"\0")
        self._net = ncnn.Net()
        option = self._net.opt
        option.num_threads = threads
        option.use_vulkan_compute = False
        option.openmp_blocktime = 0  # its threads would spin on while the next model is timed
        for half in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
            setattr(option, f"use_{half}", False)
        if self._net.load_param_mem(text.decode()) != 0:
            raise RuntimeError("ncnn does not take this network")
        # Python can hand it weights by file only.
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            file.write(weights)
            file.flush()
            if self._net.load_model(file.name) != 0:
                raise RuntimeError("ncnn does not take the weights of this network")
        sizes = text.decode().splitlines()[2].split()[-3:]
        width, height, channels = (int(each.partition("=")[2]) for each in sizes)
        self._input, self._last = self._net.input_names()[0], self._net.output_names()[0]
        self.take(random_image((1, channels, height, width), "float32", seed))

    def __call__(self) -> None:
        """Run once."""
        extractor = self._net.create_extractor()
        extractor.input(self._input, self._image)
        self._status, self._found = extractor.extract(self._last)

    def output(self) -> Values:
        """The output of the last run, with a batch of one in front."""
        found: Values = np.array(self._found)[None]
        return found

    def take(self, image: Values) -> None:
        """Run on another image, now and from now on: (1, C, H, W)."""
        import ncnn

        self._image = ncnn.Mat(np.ascontiguousarray(image[0])).clone()  # a plain one only borrows the memory
        self()


class LiteRTRunner:
    """A call that runs a LiteRT model once on a fixed random image, with XNNPACK.

    Args:
        model: the flatbuffer with its weights.
        threads: threads within an operator.
        seed: of the input.

    Attributes:
        undelegated: operators that XNNPACK left to LiteRT's own, slow kernels, in order.
    """

    def __init__(self, model: bytes, threads: int, seed: int = 0) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=model, num_threads=threads)
        self._interpreter.allocate_tensors()
        taken = self._interpreter.get_input_details()[0]
        image = random_image(taken["shape"], np.dtype(taken["dtype"]).name, seed)
        self._interpreter.set_tensor(taken["index"], image)
        self._output = self._interpreter.get_output_details()[0]["index"]
        self._run = self._interpreter.invoke
        self.undelegated = _undelegated(self._interpreter)

    def __call__(self) -> None:
        """Run once."""
        self._run()

    def output(self) -> Values:
        """The output of the last run; feature maps are in NHWC."""
        found: Values = self._interpreter.get_tensor(self._output)
        return found

    def take(self, image: Values) -> None:
        """Run on another image, now and from now on: NHWC, of the input's type."""
        self._interpreter.set_tensor(self._interpreter.get_input_details()[0]["index"], image)
        self()


def random_image(shape: Sequence[int], kind: str, seed: int) -> Values:
    """An input: standard normal, or all values of 8-bit integers alike (``float32``, ``uint8``, ``int8``).

    Args:
        shape: of the input.
        kind: of its numbers.
        seed: of the values.
    """
    random = np.random.default_rng(seed)
    if kind == "float32":
        return random.standard_normal(tuple(shape)).astype(np.float32)
    limits = np.iinfo(kind)
    return random.integers(limits.min, limits.max + 1, tuple(shape), dtype=kind)


def _undelegated(interpreter: Any) -> tuple[str, ...]:
    operators = interpreter._get_ops_details()
    delegates = [each for each in operators if each["op_name"] == "DELEGATE"]
    others = [each for each in operators if each["op_name"] != "DELEGATE"]
    makers = {output: each for each in others for output in each["outputs"]}
    taken = set()
    for delegate in delegates:
        # What lies between a delegate's inputs and its outputs is its own.
        given, wanted = set(delegate["inputs"]), list(delegate["outputs"])
        while wanted:
            tensor = wanted.pop()
            maker = makers.get(tensor)
            if tensor not in given and maker is not None and maker["index"] not in taken:
                taken.add(maker["index"])
                wanted.extend(maker["inputs"])
    return tuple(str(each["op_name"]) for each in others if each["index"] not in taken)


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


# Of each runtime in nas.measuring.conditions.PACKAGES: what joins the two parts of a model, and what runs it.
_RUNTIMES: dict[str, tuple[Callable[[bytes, Weights], bytes], Callable[[bytes, int, int], Runner]]] = {
    "onnxruntime": (onnx_content, OnnxRunner),
    "litert": (litert_content, LiteRTRunner),
    "litert_split": (litert_content, LiteRTRunner),
    "openvino": (onnx_content, OpenVinoRunner),
    "ncnn": (ncnn_content, NcnnRunner),
}


def runner_of(runtime: str, model: Model, threads: int, seed: int = 0) -> Runner:
    """A call that runs a model once.

    Args:
        runtime: one of :data:`nas.measuring.conditions.PACKAGES`.
        model: its two parts.
        threads: threads within an operator.
        seed: of the input.
    """
    joined, runner = _RUNTIMES[runtime]
    return runner(joined(*model), threads, seed)
