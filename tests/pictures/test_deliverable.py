"""What is exported recognises pictures as validation did, wherever it runs."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from nas.data import DatasetSettings, load
from nas.pictures.augment import Augment
from nas.pictures.decode import read_picture
from nas.pictures.preprocessing import Preprocessing
from nas.tensors import read_tensors
from nas.training.network_code import predict_code
from search_spaces.architecture import Architecture
from search_spaces.blocks import Block, Head, Stem
from search_spaces.errors import InputError
from search_spaces.gate import Gate
from search_spaces.references import reference
from tests.cases import Run, refused
from tests.pictures.shapes import folder, shape

# 3:2, 2:3 and 4:3.
SIZES = ((96, 64), (64, 96), (88, 66))
NAMES = ("Ärger", "Zebra", "apple 10")


def _photos(root: Path, count: int, seed: int) -> None:
    for number, size in enumerate(SIZES):
        folder(root / f"{number}", NAMES, count, seed + number, size)
        for name in NAMES:
            (root / name).mkdir(exist_ok=True)
            for path in (root / f"{number}" / name).iterdir():
                path.rename(root / name / f"{number}-{path.name}")
            (root / f"{number}" / name).rmdir()
        (root / f"{number}").rmdir()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    _photos(tmp_path / "pictures" / "train", 10, seed=0)
    _photos(tmp_path / "pictures" / "val", 10, seed=100)
    (tmp_path / "small.yaml").write_text(SMALL.to_yaml())
    return tmp_path / "pictures"


# Learns shapes of three colours in seconds; with SE and hard swish.
SMALL = Architecture(
    resolution=32,
    stem=Stem(16, activation="hswish"),
    blocks=(
        Block("inverted_residual", 3, 16, 48, 24, 2, "relu", True),
        Block("inverted_residual", 5, 24, 72, 32, 2, "hswish", True),
        Block("inverted_residual", 3, 32, 96, 32, 1, "hswish", False),
    ),
    head=Head(96, 0, "hswish"),
    classes=3,
)
TRAINED = [
    "export.architecture=small.yaml",
    "export.output=my_net.onnx",
    "export.train=true",
    "dataset=imagefolder",
    "dataset.root=pictures",
    "dataset.workers=0",
    "accuracy.epochs=15",
    "accuracy.batch_size=16",
    "accuracy.threads=1",
]


@pytest.mark.slow
def test_the_script_of_bundles_finds_the_reported_accuracy_again(
    run: Run,
    tmp_path: Path,
    pictures: Path,
) -> None:
    outcome = run("export", *TRAINED)
    assert outcome.code == 0, outcome
    assert "3 classes (Zebra, apple 10, Ärger); 90 pictures" in outcome.out
    found = re.search(r"([\d.]+) % of 90 unseen images", outcome.out)
    assert found
    assert 40 < float(found[1]) < 100  # neither chance nor trivial
    (tmp_path / "predict.py").write_text(predict_code("my_net.onnx"))
    paths = sorted((pictures / "val").rglob("*.png"))
    printed = subprocess.run(
        [sys.executable, "predict.py", *map(str, paths)], check=True, capture_output=True, text=True
    ).stdout
    names = dict(line.rsplit(": ", 1) for line in printed.splitlines())
    right = sum(names[str(path)] == path.parent.name for path in paths)
    assert f"{100 * right / len(paths):.2f}" == found[1]

    model = onnx.load(tmp_path / "my_net.onnx")
    notes = {each.key: each.value for each in model.metadata_props}
    assert json.loads(notes["classes"]) == ["Zebra", "apple 10", "Ärger"]
    assert (tmp_path / "labels.txt").read_text() == "Zebra\napple 10\nÄrger\n"
    beside = json.loads((tmp_path / "preprocessing.json").read_text())
    assert beside == {**json.loads(notes["preprocessing"]), "versions": json.loads(notes["versions"])}
    assert (beside["resize"], beside["crop"], beside["channels"]) == (37, 32, "RGB")
    assert (model.producer_name, bool(model.producer_version)) == ("mobilenet-nas", True)
    _, kept = read_tensors(tmp_path / "my_net.safetensors", Gate("weights"))
    assert kept["classes"] == notes["classes"]

    # The weights know what they were trained on: int8 is calibrated with it, and judged.
    again = [each for each in TRAINED if not each.startswith(("export.train", "dataset", "export.output"))]
    outcome = run("export", *again, "export.weights=my_net.safetensors", "export.precision=int8")
    assert outcome.code == 0, outcome
    assert f"{found[1]} % of 90 unseen images" in outcome.out
    assert "top-1 in int8" in outcome.out
    quantised = onnx.load(tmp_path / "small-int8.onnx")
    assert {each.key: each.value for each in quantised.metadata_props}["classes"] == notes["classes"]


def test_the_script_sees_what_the_decoder_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every kind of picture: the script's input is the input of validation, to the last bit."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    image = shape(0, generator, (96, 64))
    exif = Image.Exif()
    exif[0x112] = 6
    transparent = image.convert("RGBA")
    transparent.putalpha(shape(1, generator, (96, 64)).convert("L"))
    deep = generator.integers(0, 65536, (64, 96))
    made = {
        "plain.png": image,
        "grey.png": image.convert("L"),
        "bits.png": image.convert("1"),
        "alpha.png": transparent,
        "grey_alpha.png": transparent.convert("LA"),
        "palette.png": image.quantize(16),
        "animated.gif": transparent,
        "ink.tiff": image.convert("CMYK"),
        "deep.png": Image.fromarray(deep.astype(np.uint16)),
        "deep.tiff": Image.fromarray(deep.astype(np.uint16)),
        "deep.pgm": Image.fromarray(deep.astype(np.uint16)),
        "float.tiff": Image.fromarray((deep / 65535).astype(np.float32)),
        "wide_float.tiff": Image.fromarray((deep / 257).astype(np.float32)),
        "turned.jpg": image,
    }
    for name, each in made.items():
        given = {"exif": exif} if name == "turned.jpg" else {}
        each.save(name, None, **given)
    folder(tmp_path / "pictures", count=2)
    preprocessing = load(DatasetSettings("imagefolder", tmp_path / "pictures", workers=0), 32).preprocessing
    expected = [preprocessing(read_picture(Path(name))) for name in made]

    class Session:
        inputs: list[np.ndarray] = []  # noqa: RUF012

        def __init__(self, path: Path) -> None:
            assert path.name == "network.onnx"

        def get_modelmeta(self) -> "Session":
            return self

        custom_metadata_map = {  # noqa: RUF012
            "classes": '["a"]',
            "preprocessing": json.dumps(preprocessing.to_dict()),
        }

        def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            self.inputs.append(inputs["input"])
            return [np.zeros((1, 1))]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    monkeypatch.setattr(sys, "argv", ["predict.py", *made])
    exec(compile(predict_code("network.onnx"), "predict.py", "exec"), {"__file__": "predict.py"})
    for name, ours, theirs in zip(made, expected, Session.inputs, strict=True):
        assert theirs.dtype == np.float32
        assert np.array_equal(ours[None], theirs), name
    assert "turned.jpg: a" in capsys.readouterr().out


def test_files_of_another_network_are_not_replaced(run: Run, tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    refused(run("export", *TRAINED), "labels.txt describes another network", "export.output")
    assert not (tmp_path / "my_net.onnx").exists()


def test_the_number_of_classes_is_the_images(run: Run, tmp_path: Path, pictures: Path) -> None:
    refused(run("export", *TRAINED, "export.classes=10"), "export.classes=10", "3 classes")
    (tmp_path / "found.yaml").write_text(reference("mobilenet_v3_small_035", 32, 1000).to_yaml())
    outcome = run("export", *TRAINED, "export.architecture=found.yaml", "accuracy.epochs=1")
    assert outcome.code == 0, outcome
    assert onnx.load(tmp_path / "my_net.onnx").graph.initializer[-1].dims[0] == 3


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["export.train=true"], ["export.train=true needs images", "dataset=imagefolder"]),
        (["dataset.root=pictures"], ["dataset.root needs the kind of dataset too", "dataset=imagefolder"]),
        (["export.output=net.safetensors"], ["net.safetensors would be taken for weights", ".onnx"]),
        (["export.output=labels.txt"], ["labels.txt would be taken for another kind of file"]),
        (["export.output=net.tflite"], ["net.tflite", ".onnx"]),
        (["export.batch=0"], ["export.batch must be a number of pictures or dynamic, not 0"]),
        (["export.batch=many"], ["export.batch", "many"]),
        (["export.batch=2", "export.format=litert"], ["export.batch=2 goes with export.format=onnx"]),
        (["export.train=true", "export.weights=a.safetensors"], ["exclude each other"]),
    ],
)
def test_exports_that_cannot_be_are_refused(
    run: Run,
    tmp_path: Path,
    arguments: list[str],
    parts: list[str],
) -> None:
    refused(run("export", "export.architecture=mobilenet_v3_small_035", *arguments), *parts)
    assert not list(tmp_path.iterdir())


def test_int8_of_weights_that_name_no_images_asks_for_some(run: Run, tmp_path: Path) -> None:
    from nas.network import Network
    from nas.tensors import write_tensors

    write_tensors(
        tmp_path / "net.safetensors", Network(reference("mobilenet_v3_small_035", 32, 10)).state_dict()
    )
    chosen = ["export.architecture=mobilenet_v3_small_035", "export.classes=10", "export.resolution=32"]
    outcome = run("export", *chosen, "export.weights=net.safetensors", "export.precision=int8")
    refused(outcome, "export.precision=int8 is quantised with images", "dataset=imagefolder")


@pytest.mark.parametrize("batch", ["3", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_several_pictures_at_once(run: Run, tmp_path: Path, batch: str, precision: str) -> None:
    import onnxruntime

    chosen = ["export.architecture=mobilenet_v3_small_035", "export.resolution=32", "export.classes=4"]
    outcome = run(
        "export", *chosen, f"export.precision={precision}", f"export.batch={batch}", "export.output=net_v1.2"
    )
    assert outcome.code == 0, outcome
    session = onnxruntime.InferenceSession(tmp_path / "net_v1.2")
    assert session.get_inputs()[0].shape[0] == (3 if batch == "3" else "batch")
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    (scores,) = session.run(None, {"input": images})
    assert scores.shape == (3, 4)
    if batch == "dynamic":
        ones = [session.run(None, {"input": image[None]})[0][0] for image in images]
        assert np.allclose(scores, ones, atol=1e-5)


def test_weights_keep_their_whole_name_and_the_usual_mode(
    run: Run,
    tmp_path: Path,
    pictures: Path,
) -> None:
    outcome = run("export", *TRAINED, "export.output=net_v1.2", "accuracy.epochs=1")
    assert outcome.code == 0, outcome
    for name in ("net_v1.2", "net_v1.2.safetensors", "labels.txt"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "${oc.env:HOME}", "dataset must be one of"),
        ("root", 7, "root must be a text"),
        ("limit", -3, "limit must be a whole number"),
        ("augment", {"flip": True, "unknown": 1}, "damaged"),
        ("validation_share", 2, "validation_share"),
        ("surplus", 1, "unknown field 'surplus'"),
    ],
)
def test_notes_of_foreign_weights_are_checked(key: str, value: object, message: str) -> None:
    settings = DatasetSettings("imagefolder", Path("pictures"), augment=Augment(flip=True))
    kept = json.loads(json.dumps(settings.to_dict()))
    assert DatasetSettings.from_dict(kept, Gate("weights")) == replace(
        settings, root=Path("pictures").absolute()
    )
    with pytest.raises(InputError, match=rf"^weights .*{message}"):
        DatasetSettings.from_dict({**kept, key: value}, Gate("weights"))


@pytest.mark.parametrize(
    "change", [{"crop": 0}, {"std": [1, 0, 1]}, {"mean": [0.5]}, {"interpolation": "nearest"}]
)
def test_preprocessing_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    found = Preprocessing.of_photos(32)
    assert Preprocessing.from_dict(json.loads(json.dumps(found.to_dict())), Gate("net")) == found
    with pytest.raises(InputError, match=rf"^net .*{next(iter(change))}"):
        Preprocessing.from_dict({**found.to_dict(), **change}, Gate("net"))
