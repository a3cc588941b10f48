"""Every command of the README, run from top to bottom in one folder, as a reader would.

The folder holds what the README talks about: ``my_images/`` and ``photo.jpg`` (scikit-learn's digits as
image files), a board that answers to ``pi@board`` (a real SSH server on this machine), and the files that
the README shows (``# my_space.yaml`` and the like in their first line). Each command is run word for word,
followed by words of :data:`RUNS` that only make it measure, train and search less. A command that is
not listed there fails. The two lines between the ``ci:`` markers set up a machine of their own: ``.ci/run``
runs them.
"""

import contextlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.datasets import load_digits

from nas.help import CONFIG_FOLDER
from search_spaces.space import SearchSpace
from tests.devices.ssh_server import SSHD, ssh_server
from tests.test_help import schemas

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# Schemas are told to Hydra by the commands that run; this tells all of them.
__all__ = ["schemas"]
pytestmark = [
    pytest.mark.slow,
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
# For each command what is added to it, and a file it leaves; None if there is only something to read.
RUNS: dict[str, tuple[str, str | None]] = {
    "python -m nas.profile hardware=rpi4 hardware.host=pi@board": (
        _PROFILE,
        "results/latency/rpi4-onnxruntime-fp32-1t/table.json",
    ),
    "python -m nas.validate hardware=rpi4 hardware.host=pi@board": (
        _VALIDATE,
        "results/latency/rpi4-onnxruntime-fp32-1t/card.md",
    ),
    "python -m nas.search hardware=rpi4 hardware.host=pi@board search.budget_ms=mobilenet_v3_large": (
        f"{_SEARCH} {_BESIDE}",
        "results/rpi4-my_space-imagenet/report.html",
    ),
    "python -m nas.profile hardware=rpi5 profile.kit=rpi5-kit.zip": (_PROFILE, "rpi5-kit.zip"),
    "python3 rpi5-kit.zip": ("", "rpi5-kit-result.jsonl"),
    "python -m nas.profile hardware=rpi5 profile.import=rpi5-kit-result.jsonl": (
        _PROFILE,
        "results/latency/rpi5-onnxruntime-fp32-1t/table.json",
    ),
    "python -m nas.search hardware=rpi5": (
        f"{_SEARCH} {_BESIDE}",
        "results/rpi5-my_space-imagenet/report.html",
    ),
    "python -m nas.search hardware=my_board.yaml search.budget_ms=20": (
        f"{_SEARCH} {_BESIDE}",
        "results/my_board-my_space-imagenet/report.html",
    ),
    "python -m nas.search hardware=rpi4 search.budget_ms=80 study.name=rpi4-estimated": (
        f"{_SEARCH} {_BESIDE} profile.folder=none_yet",
        "results/rpi4-estimated/report.html",
    ),
    "python -m nas.search accuracy=train dataset=imagefolder dataset.root=my_images study.name=my_images "
    "search.minutes=60": (
        f"search_space=my_space.yaml {_MEASURE} search.references=[mobilenet_v3_small_050] search.trials=3 "
        "dataset.resolutions=[32] dataset.workers=0 accuracy.epochs=1",
        "results/my_images/report.html",
    ),
    "python -m nas.export export.architecture=results/my_images/architectures/ID.yaml "
    "export.output=my_net.onnx export.train=true dataset=imagefolder dataset.root=my_images "
    "accuracy.epochs=100": ("accuracy.epochs=1 dataset.workers=0", "my_net.safetensors"),
    "python recognise.py photo.jpg": ("", None),
    "python -m nas.search search_space=my_space.yaml study.name=my_space": (
        f"search_space.resolutions=[96] {_MEASURE} {_FEW} {_BESIDE}",
        "results/my_space/report.html",
    ),
    "python -m nas.profile profile.dry_run=true": ("search_space.resolutions=[96]", None),
    "python -m nas.validate": (_VALIDATE, "results/latency/host-onnxruntime-fp32-1t/card.md"),
    "python -m nas.search search.task=segmentation study.name=dense": (
        f"{_SEARCH} {_BESIDE}",
        "results/dense/summary.md",
    ),
    "python -m nas.export export.architecture=mobilenet_v3_large export.task=detection": (
        "",
        "mobilenet_v3_large-detection.onnx",
    ),
    "python as_module.py": ("", None),
    "python -m nas.train train.architecture=results/my_images/architectures/ID.yaml dataset=imagefolder "
    "dataset.root=my_images train.bundle=my_bundle": (
        "train.epochs=2 train.warmup_epochs=1 train.threads=1 dataset.workers=0",
        "my_bundle/network.py",
    ),
    "python -m nas.search accuracy=train dataset=imagefolder dataset.root=my_images study.name=my_images "
    "search.train_best=3": (
        f"search_space=my_space.yaml {_MEASURE} search.references=[mobilenet_v3_small_050] search.trials=3 "
        "dataset.resolutions=[32] dataset.workers=0 accuracy.epochs=1 train.epochs=1 train.warmup_epochs=0",
        "results/my_images/bundles/mobilenet_v3_small_050/README.md",
    ),
    "python -m nas.supernet dataset=digits search_space=my_space.yaml": (
        "dataset.limit=256 supernet.epochs=1 supernet.threads=1",
        "supernet.safetensors",
    ),
    "python -m nas.search dataset=digits search_space=my_space.yaml accuracy=supernet "
    "accuracy.checkpoint=supernet.safetensors": (
        f"dataset.limit=256 {_MEASURE} search.references=[] search.trials=3 search.end_to_end=2",
        "results/host-my_space-digits-supernet/report.html",
    ),
    "python -m nas.report results/my_images": ("", "results/my_images/summary.md"),
    "python -m nas.report results/my_images results/my_space": (
        "",
        "results/my_images/comparison-my_space.html",
    ),
    "python -m nas.search study.name=beside_resnet "
    "'search.references=[mobilenet_v3_large,torchvision:resnet18]'": (
        _SEARCH,
        "results/beside_resnet/report.html",
    ),
    "python -m nas.search --help": ("", None),
    "python -m nas.search accuracy=train --help": ("", None),
    "python -m nas.search --cfg job": ("", None),
    'eval "$(python -m nas.completion)"': ("; complete -p python", None),
}


def _commands() -> list[str]:
    """The indented lines of the README, but for those between the markers of .ci/run and in code blocks."""
    text = re.sub(r"<!-- ci:.*?<!-- /ci -->", "", README, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def _files() -> dict[str, str]:
    """The files that the README shows, by the name in their first line."""
    blocks = re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", README, re.DOTALL)
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
    less, left = RUNS[command]
    architectures = sorted((place / "results/my_images/architectures").glob("*.yaml"))
    if architectures:  # a reader finds an ID in the report
        name = architectures[0].stem
        (place / "as_module.py").write_text(_files()["as_module.py"].replace("ID", name))
        command = command.replace("/ID.yaml", f"/{name}.yaml")
    capfd.readouterr()
    _run(f"{command} {less}".strip())
    if left:
        assert (place / left).stat().st_size > 0
    else:
        assert capfd.readouterr().out.strip()


def test_what_the_commands_said_is_true(place: Path) -> None:
    table = (place / "results/rpi4-my_space-imagenet/pareto.csv").read_text()
    assert "measured" in table
    assert "estimated" not in table
    assert "estimated" in (place / "results/rpi4-estimated/pareto.csv").read_text()
    assert ",torchvision:resnet18," in (place / "results/beside_resnet/pareto.csv").read_text()


def test_the_spaces_and_boards_it_shows_are_read() -> None:
    files = _files()
    assert set(files) == {"my_board.yaml", "my_space.yaml", "recognise.py", "as_module.py"}
    space = SearchSpace.from_dict(yaml.safe_load(files["my_space.yaml"]))
    assert space.size > 1000


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
    anchors = {
        re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.*)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target
