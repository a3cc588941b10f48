"""Exported files give the same answers in other runtimes: OpenCV's DNN and ONNX Runtime in WebAssembly."""

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from nas.graphs.onnx import onnx_model
from nas.graphs.quantize import quantize
from nas.network import Network
from nas.pictures.decode import read_picture
from nas.pictures.preprocessing import Preprocessing
from nas.training.network_code import predict_code
from search_spaces.architecture import Architecture
from search_spaces.references import reference
from tests.cases import Run
from tests.pictures.test_deliverable import _photos

pytestmark = pytest.mark.slow

Images = np.ndarray
Answers = Callable[[Path, Images], Images]

FAMILIES = (
    "mobilenet_v1_025",
    "mobilenet_v2_035",
    "mobilenet_v3_large_035",
    "mobilenet_v3_small_050",
    "mobilenet_v3_large_minimalistic_035",
    "mobilenet_v3_small_minimalistic",
    "efficientnet_lite0",
    "efficientnet_b0",
    "mnasnet_a1",
    "mobilenetv4_conv_small_050",
)
_WEB = """
const fs = require("fs");
const ort = require("onnxruntime-web");
ort.env.wasm.numThreads = 1;
(async () => {
  const [model, images, shape, output] = process.argv.slice(2);
  const [count, ...rest] = shape.split(",").map(Number);
  const bytes = fs.readFileSync(images);
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const size = rest.reduce((a, b) => a * b);
  const session = await ort.InferenceSession.create(fs.readFileSync(model));
  const scores = [];
  for (let i = 0; i < count; i++) {
    const image = new ort.Tensor("float32", values.slice(i * size, (i + 1) * size), [1, ...rest]);
    scores.push(...(await session.run({ input: image })).output.data);
  }
  fs.writeFileSync(output, Buffer.from(new Float32Array(scores).buffer));
})().catch((error) => { console.error(error); process.exit(1); });
"""


def _onnxruntime(path: Path, images: Images) -> Images:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return np.concatenate([session.run(None, {"input": image[None]})[0] for image in images])


def _opencv(path: Path, images: Images) -> Images:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    network = cv2.dnn.readNetFromONNX(str(path))
    found = []
    for image in images:
        network.setInput(image[None])
        found.append(network.forward().copy())
    return np.concatenate(found)


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm (apt install nodejs npm)")
    folder = tmp_path_factory.mktemp("web")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web@1"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"npm cannot fetch onnxruntime-web: {made.stderr.strip().splitlines()[-1:]}")
    (folder / "run.cjs").write_text(_WEB)

    def answers(path: Path, images: Images) -> Images:
        images.astype("<f4").tofile(folder / "images")
        shape = ",".join(map(str, images.shape))
        subprocess.run(
            ["node", "run.cjs", str(path.absolute()), "images", shape, "scores"], cwd=folder, check=True
        )
        return np.fromfile(folder / "scores", "<f4").reshape(len(images), -1)

    return answers


def _spread(network: Network) -> Network:
    """Random statistics: with fresh norms every gate sits in the middle, and errors in it would not show."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.3, 1.5)
            module.running_mean.normal_(0, 0.3)
    return network.eval()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_alike(family: str, precision: str, tmp_path: Path, web: Answers) -> None:
    torch.manual_seed(0)
    network = _spread(Network(reference(family, 64, 10)))
    images = np.random.default_rng(0).standard_normal((8, 3, 64, 64), dtype=np.float32)
    model = onnx_model(network, (1, 3, 64, 64))
    if precision == "int8":
        model = quantize(model, [image[None] for image in images])
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    expected = _onnxruntime(tmp_path / "net.onnx", images)
    scale = np.abs(expected).max()
    assert np.abs(web(tmp_path / "net.onnx", images) - expected).max() < scale * (
        1e-4 if precision == "fp32" else 0.1
    )
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    if precision == "int8" and int(cv2.__version__.split(".")[0]) >= 5:
        # The README says so; where this fails it may say better.
        with pytest.raises(cv2.error, match="argTensor"):
            _opencv(tmp_path / "net.onnx", images)
        return
    found = _opencv(tmp_path / "net.onnx", images)
    assert np.abs(found - expected).max() < scale * (1e-4 if precision == "fp32" else 0.1)
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_the_accuracy_in_the_report_is_that_of_every_runtime(
    run: Run,
    tmp_path: Path,
    web: Answers,
) -> None:
    """A space of one network, so that the report is about the network that is exported."""
    _photos(tmp_path / "pictures" / "train", 10, seed=0)
    _photos(tmp_path / "pictures" / "val", 10, seed=100)
    space = {
        "name": "one",
        "resolutions": [32],
        "stems": [{"channels": 16, "activation": "hswish"}],
        "stages": [
            {"stride": 2, "depths": [1], "widths": [24], "expansions": [3], "se": [True]},
            {"stride": 2, "depths": [2], "widths": [32], "kernels": [5], "expansions": [3], "se": [True]},
        ],
        "heads": [{"conv_channels": 96, "activation": "hswish"}],
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(space))
    images = ["dataset=imagefolder", "dataset.root=pictures", "dataset.workers=0"]
    recipe = ["accuracy.epochs=25", "accuracy.batch_size=16", "accuracy.threads=1"]
    measuring = ["profile.max_keys=40", "profile.networks=4", "profile.rounds=4", "search.references=[]"]
    outcome = run(
        "search",
        "search_space=one.yaml",
        "accuracy=train",
        "dataset.resolutions=[32]",
        "study.name=mine",
        *images,
        *recipe,
        *measuring,
    )
    assert outcome.code == 0, outcome
    (row,) = csv.DictReader((tmp_path / "results/mine/pareto.csv").open())
    reported = float(row["top1"])
    assert 45 < reported < 95  # neither chance nor trivial

    table = f"results/mine/architectures/{row['id']}.yaml"
    arguments = [f"export.architecture={table}", "export.train=true", "export.output=my_net.onnx"]
    outcome = run("export", *arguments, *images, *recipe)
    assert outcome.code == 0, outcome
    assert f"{reported:.2f} % of 90 unseen images" in outcome.out

    paths = sorted((tmp_path / "pictures" / "val").rglob("*.png"))
    preprocessing = Preprocessing.of_photos(32)
    inputs = np.stack([preprocessing(read_picture(path)) for path in paths])
    names = (tmp_path / "labels.txt").read_text().splitlines()
    labels = np.array([names.index(path.parent.name) for path in paths])

    def module(_: Path, shown: Images) -> Images:
        network = Network(Architecture.from_yaml((tmp_path / table).read_text()))
        network.load_state_dict(load_file(tmp_path / "my_net.safetensors"))
        with torch.inference_mode():
            return network.eval()(torch.from_numpy(shown)).numpy()

    for answers in (_onnxruntime, _opencv, web, module):
        scores = answers(tmp_path / "my_net.onnx", inputs)
        accuracy = 100 * (scores.argmax(1) == labels).mean()
        assert accuracy == pytest.approx(reported, abs=1e-3), answers

    (tmp_path / "predict.py").write_text(predict_code("my_net.onnx"))
    script = [sys.executable, "predict.py", *map(str, paths)]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    said = [re.split(": ", line)[-1] for line in printed.splitlines()]
    right = sum(name == path.parent.name for name, path in zip(said, paths, strict=True))
    assert 100 * right / len(paths) == pytest.approx(reported, abs=1e-3)
