"""Every command of the README, run from top to bottom in one folder, as a reader would.

The folder holds what the README talks about: ``my_images/`` and ``photo.jpg`` (scikit-learn's digits as
image files), a board that answers to ``pi@board`` (a real SSH server on this machine), and the files that
the README shows (``# my_space.yaml`` and the like in their first line). Each command is run word for word,
followed by words of :data:`RUNS` that only make it measure, train and search less. A command that is
not listed there fails. The two lines between the ``ci:`` markers set up a machine of their own: ``.ci/run``
runs them.
"""

import contextlib
import csv
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from nas.devices.kit import read_result
from nas.help import CONFIG_FOLDER
from nas.latency.table import LatencyTable
from nas.latency.validation import load_card
from nas.page.reading import read_study, report_of
from nas.runtimes.runtime import Runtime
from search_spaces.architecture import Architecture
from search_spaces.layers import reachable_layer_keys
from search_spaces.space import SearchSpace
from tests.cases import assert_drawn
from tests.devices.ssh_server import SSHD, ssh_server
from tests.test_help import schemas

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# Schemas are told to Hydra by the commands that run; this tells all of them.
__all__ = ["schemas"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,  # three rounds decide what meets a budget
    pytest.mark.skipif(SSHD is None, reason="needs an SSH server (apt install openssh-server)"),
    pytest.mark.usefixtures("unsteady_machine"),
]

_SMALL = "search_space=my_space.yaml search_space.resolutions=[96]"
_MEASURE = "profile.max_keys=30 profile.networks=4 profile.rounds=3"
_PROFILE = f"{_SMALL} {_MEASURE}"
_VALIDATE = f"{_PROFILE} validate.networks=4 validate.rounds=3"
_FEW = "search.trials=30 search.screen=500"
_SEARCH = f"{_PROFILE} {_FEW}"
_BESIDE = "search.references=[mobilenet_v3_large]"
# Looks at the folder and at what a command said.
Check = Callable[[Path, str], None]


def _says(pattern: str) -> Check:
    def check(place: Path, said: str) -> None:
        assert re.search(pattern, said, re.MULTILINE), said

    return check


def _folder(place: Path, board: str) -> Path:
    return place / "results" / "latency" / f"{board}-onnxruntime-fp32-1t"


def _table(board: str) -> Check:
    def check(place: Path, said: str) -> None:
        table = LatencyTable.load(_folder(place, board))
        assert table.header.hardware == board
        counts = Counter(each.source for each in table.entries.values())
        assert counts["measured"] >= 30
        assert set(counts) == {"measured", "predicted"}
        assert not table.missing(reachable_layer_keys(_my_space().restricted([96])))

    return check


def _card(board: str) -> Check:
    def check(place: Path, said: str) -> None:
        card = load_card(_folder(place, board))
        assert card is not None
        rows = list(csv.DictReader((_folder(place, board) / "validation.csv").open()))
        assert len(rows) >= card.calibrated.networks >= 4
        # Few rounds on a machine that runs tests say nothing of how large the error is, but it is that of
        # the networks named first; references that calibrated the table follow.
        ratios = [float(row["predicted_ms"]) / float(row["measured_ms"]) for row in rows]
        errors = np.abs(np.array(ratios) - 1)[: card.calibrated.networks]
        assert card.calibrated.mape == pytest.approx(errors.mean(), rel=1e-3)
        assert card.calibrated.worst == pytest.approx(errors.max(), rel=1e-3)

    return check


def _study(
    name: str,
    trials: int = 30,
    references: Set[str] = frozenset({"mobilenet_v3_large"}),
    latency: Set[str] = frozenset({"measured"}),
    accuracy: str = "predicted",
    budget: bool = False,
    words: str = "",
) -> Check:
    """A study of so many candidates beside these references, whose files agree with it."""

    def check(place: Path, said: str) -> None:
        folder = place / "results" / name
        report = report_of(read_study(folder), importances=False)
        assert len({each.id for each in report.candidates}) == len(report.candidates) == trials
        assert {each.name for each in report.references} == references
        assert report.front
        assert {each.latency_source for each in report.front} <= latency
        assert {each.accuracy_source for each in report.front} == {accuracy}
        assert (report.budget_ms is not None) == budget
        if report.budget_ms is not None:
            # The reference that gives the budget may come out slower end to end than by the table.
            candidates = [each for each in report.front if each.kind == "candidate"]
            assert candidates
            assert max(each.latency_ms for each in candidates) <= report.budget_ms
        rows = list(csv.DictReader((folder / "pareto.csv").open()))
        assert {row["id"] for row in rows} == {each.id for each in (*report.front, *report.references)}
        page = (folder / "report.html").read_text()
        assert all(each.id in page for each in report.front)
        for each in report.front:
            text = (folder / "architectures" / f"{each.id}.yaml").read_text()
            assert Architecture.from_yaml(text) == each.architecture
        assert_drawn(folder / "pareto.png")
        assert words in (folder / "summary.md").read_text()
        assert f"results/{name}/report.html" in said

    return check


def _kit(place: Path, said: str) -> None:
    with zipfile.ZipFile(place / "rpi5-kit.zip") as kit:
        assert kit.testzip() is None
        assert "__main__.py" in kit.namelist()
    assert "python3 rpi5-kit.zip" in said


def _kit_result(place: Path, said: str) -> None:
    result = read_result(place / "rpi5-kit-result.jsonl", "rpi5", Runtime())
    assert result.problems == ()
    assert sum(len(each.measurement.subjects) for each in result.groups) >= 30


def _outputs(model: Path, resolution: int) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model)
    found = session.run(None, {"input": np.zeros((1, 3, resolution, resolution), np.float32)})
    assert all(np.isfinite(each).all() for each in found)
    return list(found)


def _exported(place: Path, said: str) -> None:
    (scores,) = _outputs(place / "my_net.onnx", 32)
    assert scores.shape == (1, 10)
    assert (place / "labels.txt").read_text().splitlines() == [f"digit {each}" for each in range(10)]


def _detector(place: Path, said: str) -> None:
    found = _outputs(place / "mobilenet_v3_large-detection.onnx", 224)
    logits, boxes = sorted(found, key=lambda each: -each.shape[-1])
    assert (logits.shape[-1], boxes.shape[-1]) == (91, 4)
    assert logits.shape[:2] == boxes.shape[:2]


def _bundle(place: Path, said: str) -> None:
    card = (place / "my_bundle" / "README.md").read_text()
    assert "| top-1, images that rank candidates |" in card
    (scores,) = _outputs(place / "my_bundle" / "network.onnx", 32)
    assert scores.shape == (1, 10)
    weights = load_file(place / "trained.safetensors")
    assert all(torch.isfinite(each).all() for each in weights.values())


def _trained(place: Path, said: str) -> None:
    folder = place / "results" / "my_images"
    rows = list(csv.DictReader((folder / "pareto.csv").open()))
    assert {row["accuracy_source"] for row in rows} == {"trained"}
    for row in rows:
        card = (folder / "bundles" / (row["name"] or row["id"]) / "README.md").read_text()
        assert f"| {float(row['top1']):.2f} ±" in card


def _supernet(place: Path, said: str) -> None:
    weights = load_file(place / "supernet.safetensors")
    assert all(torch.isfinite(each).all() for each in weights.values())
    assert re.search(r"\d+ steps, 0 of them before", said), said


def _summary(place: Path, said: str) -> None:
    folder = place / "results" / "my_images"
    report = report_of(read_study(folder), importances=False)
    text = (folder / "summary.md").read_text()
    assert all((each.name or each.id) in text for each in report.front)


def _comparison(place: Path, said: str) -> None:
    page = (place / "results" / "my_images" / "comparison-my_space.html").read_text()
    for name in ("my_images", "my_space"):
        report = report_of(read_study(place / "results" / name), importances=False)
        assert all(each.id in page for each in report.front)


def _composed(place: Path, said: str) -> None:
    composed = yaml.safe_load(said)
    written = yaml.safe_load((CONFIG_FOLDER / "search.yaml").read_text())
    assert composed["search"]["trials"] == written["search"]["trials"]
    assert composed["hardware"]["name"] == "host"


def _my_space() -> SearchSpace:
    return SearchSpace.from_dict(yaml.safe_load(_files()["my_space.yaml"]))


# For each command what is added to it, and what must be true of what it leaves and says.
RUNS: dict[str, tuple[str, Check]] = {
    "python -m nas.profile hardware=rpi4 hardware.host=pi@board": (
        _PROFILE,
        _table("rpi4"),
    ),
    "python -m nas.validate hardware=rpi4 hardware.host=pi@board": (
        _VALIDATE,
        _card("rpi4"),
    ),
    "python -m nas.search hardware=rpi4 hardware.host=pi@board search.budget_ms=mobilenet_v3_large": (
        f"{_SEARCH} {_BESIDE}",
        _study("rpi4-my_space-imagenet", budget=True),
    ),
    "python -m nas.profile hardware=rpi5 profile.kit=rpi5-kit.zip": (_PROFILE, _kit),
    "python3 rpi5-kit.zip": ("", _kit_result),
    "python -m nas.profile hardware=rpi5 profile.import=rpi5-kit-result.jsonl": (
        _PROFILE,
        _table("rpi5"),
    ),
    "python -m nas.search hardware=rpi5": (
        f"{_SEARCH} {_BESIDE}",
        _study("rpi5-my_space-imagenet", latency={"table", "predicted"}),
    ),
    "python -m nas.search hardware=my_board.yaml search.budget_ms=20": (
        f"{_SEARCH} {_BESIDE}",
        _study("my_board-my_space-imagenet", budget=True),
    ),
    "python -m nas.search hardware=rpi4 search.budget_ms=80 study.name=rpi4-estimated": (
        f"{_SEARCH} {_BESIDE} profile.folder=none_yet",
        _study("rpi4-estimated", latency={"estimated"}, budget=True),
    ),
    "python -m nas.search accuracy=train dataset=imagefolder dataset.root=my_images study.name=my_images "
    "search.minutes=60": (
        f"search_space=my_space.yaml {_MEASURE} search.references=[mobilenet_v3_small_050] search.trials=3 "
        "dataset.resolutions=[32] dataset.workers=0 accuracy.epochs=1",
        _study("my_images", 3, {"mobilenet_v3_small_050"}, accuracy="measured"),
    ),
    "python -m nas.train train.architecture=results/my_images/architectures/ID.yaml dataset=imagefolder "
    "dataset.root=my_images train.bundle=my_bundle": (
        "train.epochs=2 train.warmup_epochs=1 train.threads=1 dataset.workers=0",
        _bundle,
    ),
    "python my_bundle/predict.py photo.jpg": ("", _says(r"^photo\.jpg: digit \d$")),
    "python -m nas.search search_space=my_space.yaml study.name=my_space": (
        f"search_space.resolutions=[96] {_MEASURE} {_FEW} {_BESIDE}",
        _study("my_space"),
    ),
    "python -m nas.profile profile.dry_run=true": (
        "search_space.resolutions=[96]",
        _says(r"to measure: [\d,]+ layers"),
    ),
    "python -m nas.validate": (_VALIDATE, _card("host")),
    "python -m nas.search search.task=segmentation study.name=dense": (
        f"{_SEARCH} {_BESIDE}",
        _study("dense", words="whole models for segmentation (21 classes)"),
    ),
    "python -m nas.export export.architecture=mobilenet_v3_large export.task=detection": (
        "",
        _detector,
    ),
    "python -m nas.export export.architecture=results/my_images/architectures/ID.yaml "
    "export.weights=trained.safetensors export.output=my_net.onnx": ("", _exported),
    "python -m nas.search accuracy=train dataset=imagefolder dataset.root=my_images study.name=my_images "
    "search.train_best=3": (
        f"search_space=my_space.yaml {_MEASURE} search.references=[mobilenet_v3_small_050] search.trials=3 "
        "dataset.resolutions=[32] dataset.workers=0 accuracy.epochs=1 train.epochs=1 train.warmup_epochs=0",
        _trained,
    ),
    "python -m nas.supernet dataset=digits search_space=my_space.yaml": (
        "dataset.limit=256 supernet.epochs=1 supernet.threads=1",
        _supernet,
    ),
    "python -m nas.search dataset=digits search_space=my_space.yaml accuracy=supernet "
    "accuracy.checkpoint=supernet.safetensors": (
        f"dataset.limit=256 {_MEASURE} search.references=[] search.trials=3 search.end_to_end=2",
        _study("host-my_space-digits-supernet", 3, frozenset(), accuracy="supernet"),
    ),
    "python -m nas.report results/my_images": ("", _summary),
    "python -m nas.report results/my_images results/my_space": (
        "",
        _comparison,
    ),
    "python -m nas.search study.name=beside_resnet "
    "'search.references=[mobilenet_v3_large,torchvision:resnet18]'": (
        _SEARCH,
        _study("beside_resnet", references={"mobilenet_v3_large", "torchvision:resnet18"}),
    ),
    "python -m nas.search --help": ("", _says(r"search\.budget_ms")),
    "python -m nas.search accuracy=train --help": ("", _says(r"accuracy\.epochs")),
    "python -m nas.search --cfg job": ("", _composed),
    'eval "$(python -m nas.completion)"': (
        "; complete -p python",
        _says(r"^complete .*-F _mobilenet_nas python$"),
    ),
}


def _commands() -> list[str]:
    """The indented lines of the README, but for those between the markers of .ci/run and in code blocks."""
    text = re.sub(r"<!-- ci:.*?<!-- /ci -->", "", README, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def _files() -> dict[str, str]:
    """The files that the README shows, by the name in their first line."""
    blocks = re.findall(r"```yaml\n# (\S+)\n(.*?)```", README, re.DOTALL)
    return dict(blocks)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("reader")
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:160], digits.target[:160], strict=True)):
        picture = Image.fromarray((pixels * 15.9).astype("uint8")).resize((48, 48))
        (folder / "my_images" / f"digit {label}").mkdir(parents=True, exist_ok=True)
        picture.save(folder / "my_images" / f"digit {label}" / f"{number}.png")
    picture.save(folder / "photo.jpg")
    for name, text in _files().items():
        (folder / name).write_text(text)
    with ssh_server(tmp_path_factory.mktemp("sshd")) as server, pytest.MonkeyPatch.context() as patch:
        # This machine has no user pi, and no network with a machine called board.
        wrapper = folder / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(
            f'#!/bin/bash\nexec {shutil.which("ssh")} -F {server.config} "${{@/#pi@board/board-a}}"\n'
        )
        wrapper.chmod(0o755)
        patch.setenv("PATH", f"{wrapper.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("COLUMNS", "200")
        patch.chdir(folder)
        yield folder


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def _run(command: str) -> None:
    """Run a line as a shell would; commands of this project in this process, which has imported PyTorch."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        with _arguments(words[2:]):
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True)


def test_every_command_is_listed_and_nothing_else() -> None:
    assert _commands() == list(RUNS)


@pytest.mark.parametrize("command", _commands())
def test_command(command: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    less, check = RUNS[command]
    architectures = sorted((place / "results/my_images/architectures").glob("*.yaml"))
    if architectures:  # a reader finds an ID in the report
        command = command.replace("/ID.yaml", f"/{architectures[0].name}")
    capfd.readouterr()
    _run(f"{command} {less}".strip())
    check(place, capfd.readouterr().out)


def test_the_spaces_and_boards_it_shows_are_read() -> None:
    files = _files()
    assert set(files) == {"my_board.yaml", "my_space.yaml"}
    assert _my_space().size > 1000


def test_options_in_the_text_exist() -> None:
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    options = {each for each in re.findall(r"`([a-z_.]+=[^`\s]+)`", text) if "hardware=..." not in each}
    assert "profile.max_keys=30" in options
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        for option in sorted(options):
            group = option.partition(".")[0]
            # What may be written as import is a key of another name: the word is reserved in Python.
            known = option.replace(".import=", ".import_file=")
            compose(group if group in ("export", "validate", "compare") else "search", [known])


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        page = ROOT / (name or "README.md")
        assert page.exists(), target
        if anchor:
            titles = re.findall(r"^##+ (.*)$", page.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z -]", "", each.lower()).replace(" ", "-") for each in titles}
