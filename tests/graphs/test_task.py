import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from nas.backbones import raw_outputs, task_model
from nas.graphs.task import OUTPUTS, task_graph
from nas.measuring.models import OnnxRunner
from nas.network import Network, folded_weights
from nas.runtimes.runtime import Runtime, RuntimeName
from nas.runtimes.subject import RuntimeUnavailableError
from search_spaces.references import reference
from search_spaces.tasks import Task, TaskNetwork

NAMES = ("mobilenet_v1_025", "mobilenet_v2_035", "mobilenet_v3_small_050", "mobilenetv4_conv_small")
TASKS = ("segmentation", "detection")


@pytest.mark.parametrize(("name", "task"), [*itertools.product(NAMES, TASKS)])
def test_the_graph_computes_what_torchvision_does(name: str, task: str) -> None:
    torch.manual_seed(0)
    side = 100  # no multiple of 32: maps of odd sides
    network = Network(reference(name, side))
    model = task_model(network, Task(task, 5))
    images = torch.randn(2, 3, side, side)
    model.train()
    with torch.no_grad():
        for _ in range(10):
            raw_outputs(model, images)  # norms with statistics of their own
        wanted = raw_outputs(model.eval(), images)
    made = task_graph(TaskNetwork(network.architecture, Task(task, 5)), folded_weights(model), batch=2)
    onnx.checker.check_model(made, full_check=True)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip(OUTPUTS[task], session.run([*OUTPUTS[task]], {"input": images.numpy()}), strict=True))
    assert set(found) == set(wanted)
    for output, values in found.items():
        assert wanted[output].std() > 1e-3
        np.testing.assert_allclose(values, wanted[output].numpy(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("task", "channels", "shape"), [("segmentation", 16, (1, 5, 64, 64)), ("detection", 6 * 32, (1, 144, 4))]
)
def test_the_whole_is_run_like_a_network(task: str, channels: int, shape: tuple[int, ...]) -> None:
    network = TaskNetwork(reference("mobilenet_v2_035", 64), Task(task, 5))
    assert network.taps[0].channels == channels
    run = Runtime().runner(network)
    run()
    assert isinstance(run, OnnxRunner)
    assert run.output().shape == shape


@pytest.mark.parametrize("runtime", ["litert", "torch"])
def test_runtimes_that_lack_it_say_so(runtime: RuntimeName) -> None:
    network = TaskNetwork(reference("mobilenet_v2_035", 64), Task("segmentation", 5))
    with pytest.raises(
        RuntimeUnavailableError, match="runs no networks for segmentation here; use runtime=onnxruntime or"
    ):
        Runtime(runtime).runner(network)
    with pytest.raises(
        RuntimeUnavailableError, match=r"onnxruntime .int8. runs no networks for segmentation"
    ):
        Runtime("onnxruntime", "int8").runner(network)
