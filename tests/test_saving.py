"""Places that are written to: one writer at a time, nothing replaced that is no file of ours."""

import errno
import os
import threading
import zipfile
from pathlib import Path

import pytest

from nas.devices.kit import check_kit
from nas.saving import (
    SaveError,
    check_apart,
    check_folder,
    check_output,
    markdown_text,
    spreadsheet_cell,
    within,
    write_atomically,
    write_together,
)
from nas.shell import file_word
from nas.training.bundle import holds_bundle


def test_two_that_write_one_file_both_succeed(tmp_path: Path) -> None:
    path, failed = tmp_path / "file", []

    def write(letter: str) -> None:
        try:
            for _ in range(15):
                write_atomically(path, letter * 100_000)
        except SaveError as error:
            failed.append(str(error))

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for each in writers:
        each.start()
    while any(each.is_alive() for each in writers):
        assert not path.exists() or path.read_text() in ("a" * 100_000, "b" * 100_000)
    assert not failed
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/dev/null", "is no file: nothing is written in its place"),
        ("pipe", "is no file"),
        ("x" * 252, "File name too long"),  # not itself, but while it is being written
        ("x" * 300, "File name too long"),
        ("d/" * 3_000 + "x", "File name too long"),
        ("/proc/new/x", "cannot be written"),  # where root, too, may write by its permissions
    ],
)
def test_an_output_that_would_fail_in_the_end_is_refused_first(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(SaveError, match=reason):
        check_output(Path(name), "export.output", overwrite=True)
    with pytest.raises(SaveError, match=r"cannot be written|is a file"):
        check_folder(Path(name), "compare.output", overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]


def test_outputs_have_places_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("x")
    check_apart({"a": tmp_path / "x", "b": tmp_path / "y", "c": None})
    with pytest.raises(SaveError, match="a and b both name"):
        check_apart({"a": tmp_path / "x", "b": tmp_path / "link"})


def test_an_archive_of_others_is_no_kit_to_be_replaced(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo", "mine")
    with pytest.raises(SaveError, match="exists already"):
        check_kit(tmp_path / "photos.zip", "profile.kit")


def test_a_bundle_replaces_nothing_of_others(tmp_path: Path) -> None:
    assert holds_bundle(tmp_path / "new")
    (tmp_path / ".network.onnx.new").touch()  # its process died
    assert holds_bundle(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    assert not holds_bundle(tmp_path)
    for name in ("network.onnx", "network.safetensors", "network.py", "predict.py"):
        (tmp_path / name).touch()
    assert holds_bundle(tmp_path)


def test_nothing_is_written_through_a_link_in_a_folder_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "bundles").symlink_to(tmp_path)
    assert within(tmp_path / "study", "training", "x") == tmp_path / "study" / "training" / "x"
    for names in (("bundles", "x"), ("..", "x"), (str(tmp_path),)):
        with pytest.raises(SaveError, match="leads out of"):
            within(tmp_path / "study", *names)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_no_cell_is_a_formula(start: str) -> None:
    assert spreadsheet_cell(f"{start}1+1") == f"'{start}1+1"
    assert spreadsheet_cell("a\x1b[2J") == r"a\x1b[2J"


def test_markdown_moves_no_cursor() -> None:
    assert markdown_text("<b>\x1b[2J\u202e|") == r"\<b\>\\x1b\[2J\\u202e\|"


@pytest.mark.parametrize(("name", "word"), [("-c.zip", "./-c.zip"), ("a; b", "'a; b'"), ("a/-b", "a/-b")])
def test_no_program_takes_a_file_for_an_option(name: str, word: str) -> None:
    assert file_word(name) == word


def test_a_full_disk_names_the_file_and_changes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_together(tmp_path, {"a": "old", "b": "old"})

    def full(descriptor: int) -> None:
        if len(list(tmp_path.glob(".*.new"))) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nas.saving.os.fsync", full)
        with pytest.raises(SaveError, match=rf"^cannot write {tmp_path}/b: .*; make room there, then"):
            write_together(tmp_path, {"a": "new", "b": "new"})
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"a": "old", "b": "old"}
