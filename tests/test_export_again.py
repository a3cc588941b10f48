"""An export that a full disk ended goes on with the same command."""

from pathlib import Path

import pytest

import nas.export
from nas.network import Network
from nas.pictures.preprocessing import Preprocessing
from nas.pictures.recognition import Recognition
from nas.saving import SaveError, write_atomically
from nas.tensors import write_tensors
from search_spaces.references import reference
from tests.cases import Run, refused


def test_whatever_file_is_the_first_that_has_no_room(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = Network(reference("mobilenet_v1_025", 32, 3))
    recognition = Recognition(("a", "b", "c"), Preprocessing.of_photos(32))
    write_tensors(tmp_path / "w.safetensors", network.state_dict(), recognition.notes())
    asked = ["export.architecture=mobilenet_v1_025", "export.weights=w.safetensors", "export.output=m.onnx"]
    for full in range(3):
        written = 0

        def write(path: Path, content: str | bytes, full: int = full) -> None:
            nonlocal written
            if written == full:
                raise SaveError(f"cannot write {path}: No space left on device")
            written += 1
            write_atomically(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(nas.export, "write_atomically", write)
            refused(run("export", *asked), "No space left on device")
        assert not (tmp_path / "m.onnx").exists()
    outcome = run("export", *asked)
    assert outcome.code == 0, outcome
    assert {each.name for each in tmp_path.iterdir()} == {
        "w.safetensors",
        "m.onnx",
        "labels.txt",
        "preprocessing.json",
    }
