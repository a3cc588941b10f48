"""What people type means what it says, whatever characters it holds; files of one's own are plain data."""

import shlex
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nas.command import store_schemas
from nas.help import CONFIG_FOLDER
from nas.overrides import key_kinds, overrides_of, read_own_file
from nas.settings import HardwareConfig, SearchConfig, milliseconds
from nas.shell import command_line, shell_line
from nas.validate import ValidateConfig
from search_spaces.errors import InputError
from tests.cases import Run

SPACE = """\
name: tiny
resolutions: [64]
stems:
- {channels: 16, activation: hswish}
stages:
- {stride: 2, depths: [1], widths: [16]}
heads:
- {conv_channels: 64}
"""


@pytest.fixture(scope="module", autouse=True)
def schemas() -> None:
    store_schemas("search", SearchConfig)


def _composed(*arguments: str) -> object:
    overrides = overrides_of("search", SearchConfig, arguments)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return OmegaConf.to_container(compose("search", overrides), resolve=True)


@pytest.mark.parametrize(
    "path",
    [
        "my images",
        "bilder/öäü é 日本",
        "copy (1)",
        "a=b",
        "a,b",
        "it's",
        'say "so"',
        "x[1]",
        "#1",
        "{}",
        "${oc.env:HOME}",
        "back\\slash",
        "ends in a backslash\\",
        "\\'",
        "tab\tin it",
        "a:b",
        "100%",
        "~nobody-of-this-name",
        "+plus",
        "-dash",
        "null and void",
    ],
)
def test_any_path_means_what_it_says(path: str) -> None:
    composed = _composed(
        "accuracy=train", "dataset=imagefolder", f"dataset.root={path}", f"study.folder={path}"
    )
    assert isinstance(composed, dict)
    assert (composed["dataset"]["root"], composed["study"]["folder"]) == (path, path)


def test_a_tilde_is_the_home_of_this_machine_not_of_a_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    composed = _composed("study.folder=~/results", "hardware.python=~/nas/bin/python")
    assert isinstance(composed, dict)
    assert composed["study"]["folder"] == "/home/me/results"
    assert composed["hardware"]["python"] == "~/nas/bin/python"


def test_lists_of_texts_and_null() -> None:
    composed = _composed("search.references=[my net.yaml,mobilenet_v2,'a, b']", "search.budget_ms=null")
    assert isinstance(composed, dict)
    assert composed["search"]["references"][:2] == ["my net.yaml", "mobilenet_v2"]
    assert composed["search"]["budget_ms"] is None


def test_entries_of_lists_may_have_commas_in_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a, b (1) [x]").mkdir()
    composed = _composed("search.references=[mobilenet_v1, a, b (1) [x],c]")
    assert isinstance(composed, dict)
    assert composed["search"]["references"] == ["mobilenet_v1", "a, b (1) [x]", "c"]


def test_a_sweep_is_still_a_sweep_and_flags_may_stand_anywhere(tmp_path: Path) -> None:
    own = tmp_path / "my space.yaml"
    own.write_text(SPACE)
    found = overrides_of("search", SearchConfig, ["-m", "search.budget_ms=40,80", f"search_space={own}"])
    assert found[0] == "search.budget_ms=40,80"
    assert found[2:] == ["--multirun"]
    two = overrides_of("search", SearchConfig, ["-m", f"search_space={own},{own}"])[0]
    assert two.count("own_file_") == 2


def test_a_board_of_ones_own_is_composed_wherever_options_stand(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my board, 1.yaml").write_text("name: my_board\nmeasured_here: true\n")
    own, option = ["hardware=my board, 1.yaml"], ["--cfg", "job"]
    for typed in ([*own, *option], [*option, *own]):
        shown = run("search", *typed, "search.trials=7")
        assert shown.code == 0, shown
        composed = yaml.safe_load(shown.out)
        assert (composed["hardware"]["name"], composed["search"]["trials"]) == ("my_board", 7)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["rpi4"], "'rpi4' is no setting; did you mean hardware=rpi4?"),
        (["search.trials"], "'search.trials' is no setting: give it a value, search.trials=VALUE"),
        (["nonsense"], "'nonsense' is no setting: type KEY=VALUE"),
        (["--trials", "5"], "unrecognized arguments: --trials; settings are typed without dashes: KEY=VALUE"),
        (["--cfg"], "expected one argument"),
        (["--cfg", "jop"], "invalid choice: 'jop'"),
    ],
)
def test_words_that_are_no_settings_are_one_line(typed: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        overrides_of("search", SearchConfig, typed)
    assert message in str(caught.value)


def test_the_command_is_remembered_as_it_was_typed(tmp_path: Path) -> None:
    own = tmp_path / "my space.yaml"
    own.write_text(SPACE)
    typed = [f"search_space={own}", "study.name=my study", "hardware=rpi4"]
    overrides_of("search", SearchConfig, typed)
    assert shlex.split(command_line()) == ["python", "-m", "nas.search", *typed]
    printed = shlex.split(shell_line("nas.validate", carry=True, hardware="host"))
    assert printed == ["python", "-m", "nas.validate", "hardware=rpi4", f"search_space={own}"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("search.trails=5", "no setting search.trails; did you mean search.trials?"),
        ("+search.trails=5", "no setting search.trails; did you mean search.trials?"),
        ("+search.trials=5", "without a sign before them: search.trials=VALUE"),
        ("serach.trials=5", "did you mean search.trials?"),
        ("hardwear=rpi4", "did you mean hardware?"),
        ("+anything.at.all=1", "no setting anything.at.all"),
        ("accuracy.epoch=3", "did you mean accuracy.epochs?"),
        ("search_space=nowhere.yaml", "there is no such file; ready choices are"),
        ("search_space=../../own", "search_space=../../own is a path; ready choices are"),
        ("dataset=../../own", "dataset=../../own is a path; ready choices are"),
        ("hardware='../../own'", "is a path; ready choices are"),
    ],
)
def test_a_key_that_does_not_exist_is_refused_with_the_nearest(argument: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        overrides_of("search", SearchConfig, [argument])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("runtime=tflite", r"no runtime=tflite \(runtime/tflite.yaml\); did you mean litert"),
        ("hardware=rpi6", r"did you mean rpi5\? known: host, .* or a YAML file of your own"),
        ("accuracy=imagnet", r"did you mean imagenet\? known: imagenet, proxy, supernet, table, train$"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused_with_the_nearest(argument: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        overrides_of("search", SearchConfig, [argument])
    sweep = overrides_of("search", SearchConfig, ["--multirun", "accuracy=proxy,table"])
    assert "accuracy=proxy,table" in sweep


@pytest.mark.parametrize(("command", "schema"), [("search", SearchConfig), ("validate", ValidateConfig)])
@pytest.mark.parametrize("key", ["profile.kit", "profile.import", "profile.export", "profile.dry_run"])
def test_what_only_a_profile_does_is_refused_elsewhere(command: str, schema: type, key: str) -> None:
    with pytest.raises(InputError, match=f"there is no setting {key}"):
        overrides_of(command, schema, [f"{key}=anything"])


def test_kinds_of_keys() -> None:
    kinds = key_kinds(SearchConfig)
    assert kinds["dataset.root"] == "text"
    assert kinds["search.references"] == "texts"
    assert kinds["search.trials"] == "other"
    assert kinds["accuracy.path"] == "text"


# -- files of one's own ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "text", "message"),
    [
        ("search_space", "# @package _global_\nhydra:\n  run: {dir: elsewhere}\n" + SPACE, "'hydra'"),
        ("search_space", SPACE + "defaults: [mobilenet]\n", "'defaults'"),
        ("search_space", SPACE.replace("tiny", "${oc.env:HOME}"), "interpolations are not known"),
        ("search_space", SPACE.replace("tiny", "!!python/object/apply:os.getcwd []"), "not valid YAML"),
        ("search_space", SPACE + "\tname: x\n", "not valid YAML"),
        ("search_space", "", "must hold a mapping"),
        ("hardware", "name: b\n_target_: os.system\n", "unknown key '_target_'"),
        ("hardware", "name: b\nhydra: {job: {env_set: {PATH: /tmp}}}\n", "unknown key 'hydra'"),
        ("hardware", "name: b\ndescription: ${oc.env:HOME}\n", "interpolations are not known"),
        ("hardware", "name: b\nhost: -oProxyCommand=touch /tmp/x\n", "hardware.host must be"),
        ("hardware", "name: b\nhosts: ['pi@a; reboot']\n", "hardware.host must be"),
        ("hardware", "name: b\nhosts: [a, '-oProxyCommand=x']\n", "hardware.host must be"),
        ("hardware", "name: b\nhost: pi@-oProxyCommand=x\n", "hardware.host must be"),
        ("hardware", "name: b\nhost: ssh://-oProxyCommand=x\n", "hardware.host must be"),
        ("hardware", "name: b\npython: python3; reboot\n", "hardware.python must be"),
        ("hardware", 'name: b\npython: "\\u202e3nohtyp"\n', "hardware.python must be"),
        ("hardware", 'name: b\npython: ""\n', "hardware.python must be"),
        ("hardware", 'name: b\nhost: "a\\eb"\n', "hardware.host must be"),
        ("hardware", f"name: b\nhost: {'x' * 5000}\n", "hardware.host must be"),
        ("hardware", "name: b\ntemperature_limit_c: -300\n", "hardware.temperature_limit_c must be"),
        ("hardware", "name: b\ntolerance: -5\n", "hardware.tolerance must be"),
        ("hardware", "name: b\ntreads: 2\n", "did you mean threads?"),
        ("hardware", "name: b\nthreads: many\n", "is no board"),
    ],
)
def test_a_file_of_ones_own_is_plain_data_of_its_group(
    group: str, text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_own_file(group, path)
    assert message in str(caught.value)
    assert "own.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_texts_that_say_their_encoding_are_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(SPACE.replace("tiny", "größe").encode(encoding))
    assert read_own_file("search_space", path)["name"] == "größe"


def test_latin_1_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(SPACE.replace("tiny", "größe").encode("latin-1"))
    with pytest.raises(InputError, match=r"own\.yaml is no UTF-8 text: byte 0xf6 in line 1"):
        read_own_file("search_space", path)


def test_an_own_space_is_composed_and_can_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "it's my space (1).yaml"
    path.write_text(SPACE)
    composed = _composed(f"search_space={path}", "search_space.resolutions=[96]")
    assert isinstance(composed, dict)
    assert (composed["search_space"]["name"], composed["search_space"]["resolutions"]) == ("tiny", [96])


def test_a_board_has_no_more_threads_than_cores(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text("name: mine\ncores: 4\nthreads: 4\nhost: pi@board\n")
    assert read_own_file("hardware", path)["cores"] == 4
    with pytest.raises(InputError, match=r"hardware\.threads=5, but mine has 4 cores"):
        HardwareConfig(name="mine", cores=4, threads=5)


def test_a_host_of_ones_own_is_still_a_host() -> None:
    for host in ("pi@board", "board", "pi@10.0.0.2", "[::1]", "my_alias", "user.name@host-1.local"):
        assert HardwareConfig(name="b", host=host).host == host


# -- budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", 20.0),
        ("20ms", 20.0),
        (" 20 ms", 20.0),
        ("22,5", 22.5),
        ("0.02 s", 20.0),
        ("500us", 0.5),
        ("2e1", 20),
    ],
)
def test_budgets_as_people_write_them(text: str, value: float) -> None:
    assert milliseconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["mobilenet_v2", "20 apples", "ms", ""])
def test_names_are_no_budgets_in_ms(text: str) -> None:
    assert milliseconds(text) is None


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "0", "-3", "1e999", "1,234.5"])
def test_a_budget_is_a_positive_finite_number(text: str) -> None:
    with pytest.raises(InputError, match=r"search\.budget_ms"):
        milliseconds(text)


def test_a_sampler_s_former_name_means_today_s_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert overrides_of("search", SearchConfig, ["sampler=evolution"]) == ["sampler=bayesian"]
    assert "sampler=evolution is called sampler=bayesian now" in capsys.readouterr().err
    several = ["--multirun", "sampler=tpe,evolution"]
    assert overrides_of("search", SearchConfig, several) == ["sampler=tpe,bayesian", "--multirun"]
    assert overrides_of("search", SearchConfig, ["sampler=tpe"]) == ["sampler=tpe"]
