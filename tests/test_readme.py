"""Every command of the README, run from top to bottom in one folder, as a reader would.

The folder holds what the README talks about: ``my_images/`` and ``photo.jpg`` (scikit-learn's digits as
image files), a board that answers to ``pi@board`` (a real SSH server on this machine), and the files that
the README shows (``# my_space.yaml`` and the like in their first line). Each command is run word for word,
followed by the words of :data:`LESS`: they only make it measure, train and search less. A command that is
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

from nas.options import CONFIG_FOLDER
from search_spaces.space import SearchSpace
from tests.boards.ssh_server import SSHD, ssh_server

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SSHD is None, reason="needs an SSH server (apt install openssh-server)"),
    pytest.mark.usefixtures("unsteady_machine"),
]

_SPACE = "search_space=my_space.yaml search_space.resolutions=[96] search.references=[mobilenet_v3_large]"
_MEASURE = "profile.max_keys=30 profile.networks=4 profile.rounds=3"
_SEARCH = f"search.trials=30 {_MEASURE}"
_LAYERS = "search_space=my_space.yaml search_space.resolutions=[96] " + _MEASURE
# What is added to each command.
LESS = {
    "python -m nas.profile hardware=rpi4 hardware.host=pi@board": _LAYERS,
    "python -m nas.validate hardware=rpi4 hardware.host=pi@board": f"{_LAYERS} validate.networks=4 "
    "validate.rounds=3",
    "python -m nas.search hardware=rpi4 hardware.host=pi@board "
    "search.budget_ms=mobilenet_v3_large": f"{_SPACE} {_SEARCH}",
    "python -m nas.profile hardware=rpi5 profile.kit=rpi5-kit.zip": _LAYERS,
    "python3 rpi5-kit.zip": "",
    "python -m nas.profile hardware=rpi5 profile.import=rpi5-kit-result.jsonl": _LAYERS,
    "python -m nas.search hardware=rpi5": f"{_SPACE} {_SEARCH}",
    "python -m nas.search hardware=my_board.yaml search.budget_ms=20": f"{_SPACE} {_SEARCH}",
    "python -m nas.search hardware=rpi4 search.budget_ms=80 study.name=rpi4-estimated": f"{_SPACE} {_SEARCH} "
    "profile.folder=none_yet",
    "python -m nas.search accuracy=train dataset=imagefolder dataset.root=my_images study.name=my_images "
    "search.minutes=60": "search_space=my_space.yaml search.references=[mobilenet_v3_small_050] "
    f"search.trials=3 dataset.resolutions=[32] dataset.workers=0 accuracy.epochs=1 {_MEASURE}",
    "python -m nas.export export.architecture=results/my_images/architectures/ID.yaml "
    "export.output=my_net.onnx export.train=true dataset=imagefolder dataset.root=my_images "
    "accuracy.epochs=100": "accuracy.epochs=1 dataset.workers=0",
    "python recognise.py photo.jpg": "",
    "python -m nas.search search_space=my_space.yaml study.name=my_space": "search_space.resolutions=[96] "
    f"search.references=[mobilenet_v3_large] {_SEARCH}",
    "python -m nas.profile profile.dry_run=true": "search_space.resolutions=[96]",
    "python -m nas.validate": f"{_LAYERS} validate.networks=4 validate.rounds=3",
    "python as_module.py": "",
    "python -m nas.report results/my_images": "",
    "python -m nas.report results/my_images results/my_space": "",
    "python -m nas.search study.name=beside_resnet "
    "'search.references=[mobilenet_v3_large,torchvision:resnet18]'": "search_space=my_space.yaml "
    f"search_space.resolutions=[96] {_SEARCH}",
    "python -m nas.search --help": "",
    "python -m nas.search accuracy=train --help": "",
    "python -m nas.search --cfg job": "",
    'eval "$(python -m nas.completion)"': "",
}
# What each leaves behind; None: something on the output alone.
LEAVES = {
    "profile hardware=rpi4": "results/latency/rpi4-onnxruntime-fp32-1t/table.json",
    "validate hardware=rpi4": "results/latency/rpi4-onnxruntime-fp32-1t/card.md",
    "search.budget_ms=mobilenet_v3_large": "results/rpi4-my_space-imagenet/report.html",
    "profile.kit": "rpi5-kit.zip",
    "python3 rpi5-kit.zip": "rpi5-kit-result.jsonl",
    "profile.import": "results/latency/rpi5-onnxruntime-fp32-1t/table.json",
    "search hardware=rpi5": "results/rpi5-my_space-imagenet/report.html",
    "my_board.yaml": "results/my_board-my_space-imagenet/report.html",
    "rpi4-estimated": "results/rpi4-estimated/report.html",
    "search accuracy=train dataset": "results/my_images/report.html",
    "nas.export": "my_net.safetensors",
    "study.name=my_space": "results/my_space/report.html",
    "report results/my_images results/my_space": "results/my_images/comparison-my_space.html",
    "torchvision:resnet18": "results/beside_resnet/report.html",
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
    assert _commands() == list(LESS)


@pytest.mark.parametrize("command", _commands())
def test_command(command: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    typed = f"{command} {LESS[command]}".strip()
    if "ID.yaml" in command:
        typed = typed.replace("ID", next((place / "results/my_images/architectures").glob("*.yaml")).stem)
    if command == "python as_module.py":
        (exported,) = (line for line in (place / "exported.txt").read_text().splitlines())
        (place / "as_module.py").write_text(_files()["as_module.py"].replace("ID", exported))
    capfd.readouterr()
    _run(typed)
    shown = capfd.readouterr().out
    if "nas.export" in command:
        (place / "exported.txt").write_text(re.findall(r"exported (\w{10})", shown)[0])
    left = [path for part, path in LEAVES.items() if part in command]
    for path in left:
        assert (place / path).stat().st_size > 0
    if not left:
        assert shown.strip() or command.startswith("eval")


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
    options = {each for each in re.findall(r"`([a-z_.]+=[^` ]+)`", text) if "hardware=..." not in each}
    assert "profile.max_keys=30" in options
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        for option in sorted(options):
            compose("export" if option.startswith("export.") else "search", [option])


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
