"""Files made to hurt: each ends in one short error line within two seconds, whoever reads it."""

import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nas.devices.ssh import Board, RemoteError
from nas.latency.table import Entry, LatencyTable, TableError
from nas.measuring.rounds import MeasurementError
from search_spaces.errors import InputError
from tools.mutate_readers import Outcome, mutated, try_one
from tools.reader_cases import Reader, readers, table

Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return {reader.name: reader for reader in readers(tmp_path_factory.mktemp("seeds"))}


def _value(old: str, new: str) -> Change:
    """One value in place of another, the first time it occurs."""

    def change(content: bytes) -> bytes:
        changed = re.sub(old.encode(), lambda found: new.encode("latin-1"), content, count=1)
        assert changed != content
        return changed

    return change


def _whole(content: bytes) -> Change:
    return lambda _: content


def _note(old: str, new: str) -> Change:
    """One value in what a file of tensors says of itself."""

    def change(content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        header = _value(old, new)(content[8 : 8 + size])
        return len(header).to_bytes(8, "little") + header + content[8 + size :]

    return change


_SAMPLE = r"(?<=\"samples_ms\": \[)[\d.]+"
_ALIASES = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b",".join([b"*%c" % (name - 1)] * 10)) for name in b"bcdefgh"
)
_CASES: list[tuple[str, Change]] = [
    *(("accel", _value(r"4,3,2,1", each)) for each in ("4,3,16777216,1", "4,3,-1,1", "1e9,3,2,1", "4,x,2,1")),
    ("accel", _value(r"70.5", "nan")),
    ("accel", _whole(b"\xff\xfe")),
    ("published", _value("224", "9" * 5_000)),
    ("published", _value("tiny", '"' + "x" * 200_000)),
    ("extra", _value(r"a\.yaml", "../../../../etc/passwd.yaml")),
    ("accuracy_table", _value(r"60\.0", "inf")),
    *(
        ("architecture", _whole(each))
        for each in (b"3:", b"!!int x", b"\xd0\xff", b"[" * 5_000, b"", _ALIASES)
    ),
    ("architecture", _value("blocks:", "blocks: !!python/object/apply:os.system [id]\nrows:")),
    ("architecture", _value("conv_layers: 1", "conv_layers: 16777216")),
    ("architecture", _value("channels: 16", "channels: 0x" + "f" * 2_000)),
    ("own_board", _value("threads: 2", "threads: .inf")),
    ("own_board", _value("host: pi@board", "host: ${oc.env:HOME}")),
    (
        "own_board",
        _value("name: my-board", "# @package _global_\nhydra: {job: {env_set: {PATH: x}}}\nname: b"),
    ),
    *(("own_board", _whole(each)) for each in (b"'on'", b"7", b"3:", _ALIASES, b"name: [1]")),
    ("own_space", _value(r"depths: \[1, 2\]", "depths: [1, 9223372036854775808]")),
    ("own_space", _value(r"layers: 2", "layers: 16777216")),
    ("own_space", _value(r"expansions: \[3, 4\]", "expansions: [1.0e+308]")),
    ("space", _value("24", "65000")),
    *(("space", _value("kind: skip", f"kind: {each}")) for each in ("false", "x", "{}", "[]", "null", "7")),
    ("space", _whole(b"{" * 5_000)),
    ("card", _value(r"\"within_5_percent\": [\d.]+", '"within_5_percent": "all"')),
    ("card", _value(r"\"mape\": [\d.e-]+", '"mape": [0.1]')),
    ("card", _value(r"\"kendall_tau\": [\d.]+", '"kendall_tau": NaN')),
    ("card", _whole(b"[" * 100_000)),
    ("networks", _whole(b"[" * 100_000)),
    ("networks", _value(r"\"latency_ms\": [\d.]+", '"latency_ms": -1')),
    ("networks", _value(r"\"classes\": 10", '"classes": 1e999')),
    *(("samples", _value(_SAMPLE, each)) for each in ("0", "-1", "NaN", "1e999", '"x"', "[1]", "{}", "null")),
    *(("rounds", _value(_SAMPLE, each)) for each in ("0", "-1", "NaN", "1e999", '"x"', "[1]", "{}", "null")),
    *(("kit", _value(_SAMPLE, each)) for each in ("0", "-1", "NaN", "1e999", '"x"', "[1]", "{}", "null")),
    ("rounds", _value(r"\"conditions\": \{", '"conditions": {"load": {"a": 1}, "x": {')),
    ("rounds", _value(r"\"throttled\": \[\]", '"throttled": true')),
    ("kit", _value(r"\"group\": 0", '"group": "x"')),
    ("kit", _value(r"\"groups\": 1", '"groups": 99999999999')),
    ("kit", _value(r"stem_", "../stem_")),
    ("commit", _value(r"\"table.csv\"", '"../table.csv"')),
    ("commit", _value(r"pending.json", "/etc/passwd")),
    ("study", _whole(b"null\n")),
    ("study", _value(r"\"op_code\":4", '"op_code":99')),
    ("study", _value(r"\"architecture\":\"\w+\"", '"architecture":"../../../x"')),
    ("study", _value(r"\"architecture\":\"\w+\"", '"architecture":"/tmp/x"')),
    ("study", _value(r"\"values\":\[[^]]*\]", '"values":[NaN,1]')),
    ("study", _value(r"\"latency_ms\":[\d.]+", '"latency_ms":"fast"')),
    ("study", _value(r"\"directions\":\[[^]]*\]", '"directions":[7]')),
    ("study", _value(r"CategoricalDistribution", "os.system")),
    *(
        ("study", _value(r"\"noise\":\[0\.1,", each))
        for each in ('"noise":[', '"noise":[null,', '"noise":[[1],')
    ),
    ("whole_models", _value(r"\"resolution\": 64", '"resolution": 96')),
    ("study", _value('"name":"mobilenet_v3_small"', '"name":"../../x"')),
    ("continued", _value(r"\"space\":", '"spaces":')),
    ("continued", _value('"fingerprint":', '"fingerprint":7,"f":')),
    ("database", _value(r'budget_margin\\": 0\.05', r"budget_margin\": NaN")),
    ("database_continued", _value('"direction": "MINIMIZE"', '"direction": "MAXIMIZE"')),
    ("database_continued", _value(r'\["trial_values", [^\n]*\n', "")),
    ("ofa", _value("2 2 2 2 2", "9" * 5_000 + " 2 2 2 2")),
    ("ofa", _value("224", "9" * 5_000)),
    ("architecture", _value("classes: 10", "classes: 1000000")),  # a classifier of 4 GB
    ("initial", _note(r'classes\\": 2', r"classes\": 1000000")),
    ("initial", _note(r'conv_channels\\": 4', r"conv_channels\": 60000")),
    *(
        (name, _note(r'widths\\": \[4\]', r"widths\": [27000]"))
        for name in ("begun_supernet", "judging_supernet")
    ),
    ("pth", _whole(b"cos\nsystem\n(S'touch PWNED'\ntR.")),
    ("pth", lambda content: content[:100]),
    ("pth", _whole(b"")),
    ("pth", lambda content: content.replace(b"torch._utils", b"torch." + b"a" * 20_000)),
    ("predictor", _note(r'(?<="scales\.length":\{"dtype":"F64","shape":\[)64', "8,8")),
    ("fashion", _value(r"\x00\x00\x00\x14", "\0\0\0\x13")),
    ("sqlite", lambda content: content[:5_000]),
    ("database", _value("COMPLETE", "FINISHED")),
    ("database", _value("CategoricalDistribution", "os.system")),
    ("database", _value(r'"datetime_start": "[^"]*"', '"datetime_start": "x"')),
    *(
        ("training", _value(old, new))
        for old, new in ((r"exp_avg_sq", "exp_avg_sx"), (r"network/layers", "network/lasers"))
    ),
    ("table_csv", _value(r",0\.1,", ",nan,")),
    ("table_csv", _value(r"stem_64", "stem_" + "9" * 400)),
    ("table_csv", _value(r"measured", "invented")),
    ("table_json", _value(r"\"calibration\": \{", '"calibration": {"features": null, "x": {')),
    ("table_json", _value(r"\"sessions\": \[", '"sessions": null, "x": [')),
    ("table_json", _whole(b"[" * 100_000)),
    ("checkpoint", lambda content: content[:-28] + b"\x00\x00\xc0\x7f" + content[-24:]),
    ("checkpoint", _whole(b"\xff" * 100)),
    ("checkpoint", lambda content: content[:40]),
]


@pytest.mark.parametrize(
    ("name", "change"), _CASES, ids=[f"{each[0]}{number}" for number, each in enumerate(_CASES)]
)
def test_a_hostile_file_ends_in_one_short_line(
    by_name: dict[str, Reader], name: str, change: Change, tmp_path: Path
) -> None:
    reader = by_name[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    content = change(reader.seeds[-1])
    start = time.process_time()
    with pytest.raises((InputError, MeasurementError)) as caught:
        reader.read(content, folder)
    assert time.process_time() - start < 2
    message = str(caught.value)
    assert "\n" not in message
    assert len(message.replace(str(folder), "")) <= 300
    assert {each.name for each in tmp_path.iterdir()} == {"folder"}


@pytest.mark.parametrize(
    "name", ["card", "networks", "own_space", "study", "samples", "kit", "table_json", "commit"]
)
def test_mutated_files_end_as_they_should(by_name: dict[str, Reader], name: str, tmp_path: Path) -> None:
    generator = random.Random(name)
    outcome = Outcome()
    reader = by_name[name]
    for _ in range(100):
        try_one(reader, mutated(reader.seeds[0], generator), tmp_path, outcome)
    assert not outcome.failures
    assert outcome.refused


def test_a_table_with_a_latency_that_is_none_is_never_written(tmp_path: Path) -> None:
    good = table()
    good.save(tmp_path)
    key = next(iter(good.entries))
    for latency_ms in (float("nan"), float("inf"), 0.0, -1.0):
        with pytest.raises(TableError, match="is no latency"):
            good.with_entries({key: Entry(latency_ms, 0.1, 40, "measured")}).save(tmp_path)
        assert LatencyTable.load(tmp_path).entries == good.entries


def test_a_lock_that_nests_without_end_names_nobody(by_name: dict[str, Reader], tmp_path: Path) -> None:
    assert by_name["lock"].read(b"[" * 9_000, tmp_path) == "another process"


def test_a_board_that_says_too_much_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "_ssh", lambda self, command: ["sh", "-c", command])
    board = Board("pi@board")
    with pytest.raises(RemoteError, match="answers with more than 64 MB"):
        board.run("exec cat /dev/zero")
    with pytest.raises(RemoteError, match=r"pi@board: .*the end$"):
        board.run("head -c 300000 /dev/zero >&2; echo; echo the end >&2; exit 3")
    assert board.run("cat", b"x" * 300_000) == b"x" * 300_000
    lines: list[str] = []
    board.stream(r"printf '\033]0;x\007a\n'; head -c 50000 /dev/zero | tr '\0' x", lines.append)
    assert lines[0] == r"\x1b]0;x\x07a"
    assert all(len(line) <= 300 for line in lines)
