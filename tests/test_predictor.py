"""``python -m nas.predictor`` from the command line."""

import csv
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from nas.accuracy.imagenet import SHIPPED_PARAMETERS, Predictor
from search_spaces.references import reference
from tests.cases import Run, refused

Rows = list[dict[str, object]]
CHOICES = {"expansion": (1, 4, 6), "kernel": (3, 5), "layers": (1, 2, 3), "se": (0, 1)}


def _write(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _accel() -> Rows:
    generator = random.Random(0)
    rows: Rows = []
    for _ in range(60):
        row: dict[str, object] = {
            f"stage{stage}_{name}": generator.choice(values)
            for stage in range(1, 8)
            for name, values in CHOICES.items()
        }
        depth = sum(int(str(row[f"stage{stage}_layers"])) for stage in range(1, 8))
        rows.append(row | {"top1": 50 + 0.5 * depth})
    return rows


def _published(name: str, resolution: int, top1: float) -> dict[str, object]:
    network = reference(name, resolution)
    return {
        "stem": {"channels": network.stem.channels, "activation": network.stem.activation, "kernel": 3},
        "blocks": [
            [
                each.kind,
                each.kernel,
                each.in_channels,
                each.expanded_channels,
                each.out_channels,
                each.stride,
                each.activation,
                each.se,
                each.expansion_conv,
                each.se_channels,
            ]
            for each in network.blocks
        ],
        "head": {
            "conv_channels": network.head.conv_channels,
            "hidden_channels": network.head.hidden_channels,
            "activation": network.head.activation,
        },
        "resolution": resolution,
        "top1": top1,
        "recipe": "mobilenet",
        "variant": name,
    }


PUBLISHED: Rows = [
    _published("mobilenet_v2", 224, 71.8),
    _published("mobilenet_v2", 160, 68.8),
    _published("mobilenet_v2_050", 224, 65.4),
    _published("mobilenet_v1", 224, 70.9),
]
SUPERNET: Rows = [
    {
        "depths": "2 2 2 2 2",
        "kernels": " ".join(["3"] * each + ["5"] * (10 - each)),
        "expansions": "4 " * 9 + "6",
        "resolution": 224,
        "width": 1.0,
        "top1": 73 + 0.1 * each,
    }
    for each in range(10)
]
EXTRA: Rows = [{"architecture": "mobilenet_v3_large", "resolution": 224, "top1": 75.2}]
FIT = [
    "data=.",
    "evaluate=false",
    "inducing=12",
    "own_inducing=[4,4]",
    "sample=20",
    "steps=5",
    "specialised=null",
]


@pytest.fixture
def fit(run: Run) -> Run:
    """Runs ``python -m nas.predictor`` with these arguments."""
    return functools.partial(run, "predictor")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path / "accel_nasbench_imagenet.csv", _accel())
    _write(tmp_path / "ofa_supernet.csv", SUPERNET)
    lines = "\n".join(json.dumps(each) for each in PUBLISHED)
    (tmp_path / "imagenet_networks.jsonl").write_text(lines + "\n")
    _write(tmp_path / "extra.csv", EXTRA)
    return tmp_path


def test_fit_writes_parameters_that_a_search_can_use(fit: Run, folder: Path) -> None:
    shipped = SHIPPED_PARAMETERS.read_bytes()
    done = fit(*FIT, "extra=extra.csv", "output=mine.safetensors")
    assert done.code == 0, done.err
    assert "4 published networks of 2 recipes" in " ".join(done.out.replace("│", " ").split())
    assert SHIPPED_PARAMETERS.read_bytes() == shipped
    found = Predictor.load(folder / "mine.safetensors", "mobilenet_v2_v3")
    assert {"mobilenet_v1", "mobilenet_v2_v3", "accel_nasbench", "ofa_supernet"} <= {*found.recipe_names}


def _changed(name: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _changed("accel_nasbench_imagenet.csv", "stage1_expansion", "colour"),
            "accel_nasbench_imagenet.csv: unknown column 'colour'",
        ),
        (
            _changed("ofa_supernet.csv", "2 2 2 2 2", "2 2 2 2"),
            "ofa_supernet.csv, line 2: depths must name 5",
        ),
        (_changed("imagenet_networks.jsonl", '"top1": 71.8', '"top1": 7.18e5'), "line 1: top1"),
        (
            _changed("imagenet_networks.jsonl", '"blocks": [[', '"blocks": [[1], ['),
            "line 1: row 1: must have",
        ),
        (_changed("imagenet_networks.jsonl", "{", "["), "imagenet_networks.jsonl, line 1 is no JSON"),
        (
            _changed("extra.csv", "224", "32"),
            "extra.csv, line 2: the ImageNet predictor knows resolutions of 48 to 320 px, not 32",
        ),
        (lambda folder: (folder / "ofa_supernet.csv").unlink(), "cannot read ofa_supernet.csv"),
    ],
)
def test_bad_files_are_one_clear_line(
    fit: Run, folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    refused(fit(*FIT, "extra=extra.csv", "output=mine.safetensors"), message)
    assert not (folder / "mine.safetensors").exists()


def test_settings_are_checked(fit: Run, folder: Path) -> None:
    refused(fit(*FIT, "inducing=0"), "inducing must be at least 1, not 0")
    refused(fit(*FIT, "steps=-1"), "steps must be at least 1, not -1")
    refused(fit(*FIT, "own_inducing=[1]"), "own_inducing must be two positive numbers")
    refused(fit(*FIT, "colour=blue"), "colour")
    refused(fit("evaluate=false"), "data")


def test_help_and_composed_settings_are_shown(fit: Run, tmp_path: Path) -> None:
    for arguments in (["--help"], ["--cfg", "job"]):
        shown = fit(*arguments)
        assert shown.code == 0, shown.err
        assert "inducing" in shown.out
    assert not list(tmp_path.iterdir())
