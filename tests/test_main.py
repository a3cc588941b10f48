"""The commands by one name."""

import subprocess
import sys

import pytest

from nas import __main__, __version__


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mobilenet-nas", *arguments])
    __main__.main()


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_they_are_listed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _main(monkeypatch, *arguments)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["search", "Search", "networks"] for line in lines)
    assert not any(line.startswith("  latency_benchmark") for line in lines)  # a tool, not installed


def test_an_unknown_command_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"no command 'serach'; did you mean search\? known are: .*profile"):
        _main(monkeypatch, "serach")


def test_a_command_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nas", "report", "--help"], capture_output=True, text=True, check=True
    )
    assert "python -m nas.report" in done.stdout


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _main(monkeypatch, "--version")
    assert capsys.readouterr().out == f"mobilenet-nas {__version__}\n"


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("KeyboardInterrupt", 130, "interrupted\n"),
        (
            "FileNotFoundError(2, 'No usable temporary directory found in [...]')",
            2,
            "error: cannot write a temporary file: No usable temporary directory found in [...]; make room "
            "there, or set TMPDIR to another place, then type the same command again\n",
        ),
    ],
)
@pytest.mark.parametrize("program", ["-m", "/usr/bin/mobilenet-nas"])
def test_what_ends_a_command_before_it_has_begun_is_a_line(
    program: str, raised: str, code: int, said: str
) -> None:
    loading = f"import sys; sys.argv[:1] = [{program!r}]; import nas; raise {raised}"
    done = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, said)
