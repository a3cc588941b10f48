import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

# Tests share the cores among processes: none takes all of them for the threads of a matrix product.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# pytest-xdist tells its processes the terminal's width; what commands print is read here as from a log.
os.environ.pop("COLUMNS", None)

from hydra._internal.hydra import Hydra

from nas.command import command
from nas.devices import kit
from nas.measuring import rounds
from nas.shell import remember
from search_spaces.space import SearchSpace
from tests.cases import Outcome, Run, command_of

CONF = Path(__file__).parent.parent / "conf"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many processes ``-n auto`` starts: as many as the smallest machine that checks has cores."""
    return 2


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look through it again and again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Tests send themselves and what they start Ctrl-C, which a shell's background jobs ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mobilenet_space() -> SearchSpace:
    return SearchSpace.from_yaml(CONF / "search_space" / "mobilenet.yaml")


@pytest.fixture(scope="session")
def mobilenetv4_space() -> SearchSpace:
    return SearchSpace.from_yaml(CONF / "search_space" / "mobilenetv4.yaml")


@pytest.fixture(scope="module")
def unsteady_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lets every round count, here and inside kits: machines that run tests do not hold still."""
    source = Path(rounds.__file__).read_text()
    line = f"STEADY_TOLERANCE = {rounds.STEADY_TOLERANCE:.2f}\n"
    assert line in source
    lenient = tmp_path_factory.mktemp("lenient") / "rounds.py"
    lenient.write_text(source.replace(line, "STEADY_TOLERANCE = 1e9\n"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "STEADY_TOLERANCE", 1e9)
        patch.setitem(kit._MODULES, "measuring/rounds.py", SimpleNamespace(__file__=str(lenient)))
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs ``python -m nas.<name>`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    # Hydra composes everything twice, first to see whether it is told to sweep: nothing here is.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)

    def run_command(name: str, *arguments: str) -> Outcome:
        module, schema = command_of(name)
        monkeypatch.setattr(sys, "argv", [f"nas.{name}", *arguments])
        capfd.readouterr()
        try:
            command(name, schema, module.main)
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        found = capfd.readouterr()
        return Outcome(code, found.out, found.err)

    return run_command


@pytest.fixture(autouse=True)
def _nothing_typed_before() -> None:
    """What one test's command was told is in no other test's messages."""
    remember([])
