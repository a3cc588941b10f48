"""The commands from a table to a file, over every runtime and precision that is installed."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from _pytest.mark import ParameterSet
from safetensors.torch import save_file

from nas.accuracy.train import calibration_images
from nas.data import DatasetSettings, load
from nas.measuring.models import LiteRTRunner, OpenVinoRunner
from nas.network import Network
from nas.page.reading import read_study, report_of
from nas.runtimes.executorch import ExecuTorchRunner
from nas.runtimes.runtime import ENGINES, Runtime, installed
from nas.runtimes.subject import Precision
from search_spaces.architecture import Architecture
from search_spaces.layers import LayerKey, reachable_layer_keys
from search_spaces.space import SearchSpace
from tests.cases import TINY_SPACE, Run, refused
from tests.runtimes.signals import let_signals_through

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unsteady_machine")]

SIDE = TINY_SPACE["resolutions"][0]
MEASURING = ["search_space=tiny.yaml", "profile.max_keys=40", "profile.networks=4", "profile.rounds=4"]
SEARCHING = ["accuracy=proxy", "accuracy.resolution=16", "search.trials=4", "search.budget_ms=1000"]
SEARCHING += ["search.references=[]", "search.seed=3", "study.name=found"]
# What networks are exported as for a runtime; ncnn and PyTorch have no file of their own here.
FORMS = {"onnxruntime": "onnx", "openvino": "onnx"} | {
    name: name for name in ("litert", "litert_split", "executorch")
}


def every_deployment() -> list[ParameterSet]:
    """Every runtime in every precision it has; skipped where it is not installed."""
    found = []
    for name, engine in ENGINES.items():
        for precision in engine.precisions:
            lacks = name not in installed(precision) or (
                name == "torch_compile" and shutil.which("g++") is None
            )
            marks = [pytest.mark.skipif(lacks, reason=f"{name} is not installed")]
            # It compiles every layer anew for each loading.
            marks += [pytest.mark.minute] if name == "torch_compile" else []
            found.append(pytest.param(name, precision, marks=marks))
    return found


def answers(name: str, path: Path, images: np.ndarray) -> np.ndarray:
    """What a runtime makes of images, one by one, with an exported file."""
    content = path.read_bytes()
    if name == "onnxruntime":
        session = onnxruntime.InferenceSession(content)
        return np.concatenate([session.run(None, {"input": each[None]})[0] for each in images])
    runner: ExecuTorchRunner | OpenVinoRunner | LiteRTRunner
    if name == "executorch":
        runner = ExecuTorchRunner(content, (1, *images.shape[1:]), threads=1)
    else:
        runner = OpenVinoRunner(content, 1) if name == "openvino" else LiteRTRunner(content, 1)
    found = []
    for each in images:
        runner.take(each.transpose(1, 2, 0)[None] if name.startswith("litert") else each[None])
        found.append(runner.output().copy())
    return np.concatenate(found)


def with_signal(architecture: Architecture, images: np.ndarray) -> Network:
    """A network through which images get, as through a trained one."""
    torch.manual_seed(0)
    network = Network(architecture).train()
    let_signals_through(network)
    network(torch.from_numpy(images))
    return network.eval()


@pytest.mark.parametrize(("name", "precision"), every_deployment())
def test_a_runtime_is_profiled_validated_searched_and_exported(
    name: str, precision: Precision, run: Run, tmp_path: Path
) -> None:
    space = {**TINY_SPACE, "classes": 4}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(space))
    chosen = [f"runtime={name}", f"runtime.precision={precision}", *MEASURING]
    profiled = run("profile", *chosen)
    assert profiled.code == 0, profiled
    folder = tmp_path / "results" / "latency" / f"host-{name}-{precision}-1t"
    header = json.loads((folder / "table.json").read_text())
    assert [header[each] for each in ("runtime", "runtime_version", "precision", "threads")] == [
        name,
        Runtime(name, precision).version(),
        precision,
        1,
    ]
    rows = list(csv.DictReader((folder / "table.csv").open()))
    known = {LayerKey.parse(row["key"]) for row in rows if row["source"] in ("measured", "predicted")}
    assert reachable_layer_keys(SearchSpace.from_dict(space)) <= known
    assert all(0 < float(row["latency_ms"]) < 1000 for row in rows)

    validated = run("validate", *chosen, "validate.networks=4", "validate.rounds=4")
    assert validated.code == 0, validated
    card = json.loads((folder / "card.json").read_text())
    assert card["calibrated"]["networks"] >= 4

    searched = run("search", *chosen, *SEARCHING)
    assert searched.code == 0, searched
    # The table there is was used, and what is recommended timed end to end.
    assert "no latency table yet" not in searched.out
    report = report_of(read_study(tmp_path / "results" / "found"), importances=False)
    assert report.front
    assert {each.latency_source for each in report.front} == {"measured"}
    (path, *_) = sorted((tmp_path / "results" / "found" / "architectures").glob("*.yaml"))

    # With weights of one's own the file answers as the module does.
    images = np.concatenate(calibration_images(load(DatasetSettings("synthetic"), SIDE)))
    network = with_signal(Architecture.from_yaml(path.read_text()), images)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    export = ["export", f"export.architecture={path}", f"export.precision={precision}"]
    export += ["export.weights=weights.safetensors", "dataset=synthetic", "dataset.resolutions=[16]"]
    if name not in FORMS:
        refused(run(*export, f"export.format={name}"), "export.format must be one of onnx, litert")
        return
    exported = run(*export, f"export.format={FORMS[name]}")
    assert exported.code == 0, exported
    assert not exported.err
    (file,) = tmp_path.glob(f"{path.stem}-{precision}.*")
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    found = answers(name, file, images)
    error = np.abs(found - expected).mean() / np.abs(expected).mean()
    assert error < (1e-4 if precision == "fp32" else 0.15)
