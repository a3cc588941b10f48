"""The YAML files document every key, and help and completion are made of them."""

import ast
import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import nas
from nas import settings
from nas.command import store_schemas
from nas.data import DatasetSettings
from nas.help import CONFIG_FOLDER, choices_of, commands, completions, groups_of, help_text
from nas.latency.plan import TableEffort
from nas.overrides import key_kinds
from nas.pictures.augment import Augment
from nas.report import STUDIES, ReportConfig
from tests.cases import COMMANDS, command_of

FILES = sorted(path.relative_to(CONFIG_FOLDER) for path in CONFIG_FOLDER.rglob("*.yaml"))
ROOT = CONFIG_FOLDER.parent


@pytest.fixture(scope="module", autouse=True)
def schemas() -> None:
    for name in COMMANDS:
        store_schemas(name, command_of(name)[1])


@cache
def composed(name: str, *overrides: str) -> DictConfig:
    """The configuration of a command; to be read, not changed."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose(name, list(overrides))


def _leaves(node: yaml.Node) -> Iterator[tuple[str, int, int]]:
    """Each key of block mappings whose value is no mapping, with its first and last line."""
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _leaves(value)
        elif key.value != "defaults":
            last = key.start_mark.line if not isinstance(value, yaml.ScalarNode) else value.end_mark.line
            yield key.value, key.start_mark.line, last


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_key_has_a_comment(path: Path) -> None:
    text = (CONFIG_FOLDER / path).read_text()
    lines = text.splitlines()
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert node is not None
    bare = [
        name
        for name, first, last in _leaves(node)
        if not any("# " in line for line in lines[first : last + 1])
        and not lines[first - 1].lstrip().startswith("#")
    ]
    assert bare == []


def _examples(path: Path) -> list[list[str]]:
    """The commands in the comment that heads a file, split into words; remarks after them are left out."""
    header = (CONFIG_FOLDER / path).read_text().split("\ndefaults:")[0]
    lines = re.findall(r"^#   python -m (?:nas|tools)\.(.*)$", header, re.MULTILINE)
    words = [shlex.split(re.split(r"\s{2,}", line.strip())[0]) for line in lines]
    return [each for each in words if each[0] != "search_benchmark"]  # the one command without a YAML file


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_is_headed_by_commands_that_compose(path: Path) -> None:
    examples = _examples(path)
    if path.name == "hydra_base.yaml":
        assert examples == []
        return
    assert examples
    for name, *arguments in examples:
        if name == "predictor":
            assert arguments.pop(0) == "fit"
        if name == "report":
            unnamed = iter(STUDIES)
            arguments = [each if "=" in each else f"{next(unnamed)}={each}" for each in arguments]
        overrides = [
            each.replace("profile.import=", "profile.import_file=")
            for each in arguments
            if "=" in each and not each.endswith(("my_board.yaml", "my_space.yaml"))
        ]
        composed(name, *overrides)
    # Every choice of a group is composed here by one command.
    if len(path.parts) == 2:
        assert any(f"{path.parent}={path.stem}" in arguments for arguments in examples) or any(
            groups_of(name).get(str(path.parent)) == path.stem for name, *_ in examples
        )


@pytest.mark.parametrize("path", [each for each in FILES if len(each.parts) == 1], ids=str)
def test_every_command_file_composes(path: Path) -> None:
    if path.stem in COMMANDS:
        assert set(composed(path.stem)) >= set(groups_of(path.stem))
    else:
        assert path.stem == "hydra_base"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_choice_composes_for_every_command_that_has_it(name: str) -> None:
    groups = {group: choices_of(group) for group in groups_of(name)}
    # The first choice of each group together, then the second of each, and so on.
    for choices in zip_longest(*groups.values()):
        chosen = {group: choice for group, choice in zip(groups, choices, strict=True) if choice}
        found = composed(name, *(f"{group}={choice}" for group, choice in chosen.items()))
        assert all(found[group] for group in chosen)


def _differences(said: Mapping[str, object], declared: Mapping[str, object], place: str) -> list[str]:
    """Keys whose value in a YAML file is another one, or of another type, than the schema's default.

    What either leaves open (``???``) or takes from another key (``${...}``) has no value to differ in.
    """
    found = []
    for key, value in said.items():
        default, where = declared[key], f"{place}.{key}"
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            found += _differences(value, default, where)
            continue
        is_open = default == "???" or str(value).startswith(("???", "${"))
        if not is_open and (value, type(value)) != (default, type(default)):
            found.append(f"{where} is {value!r} in the YAML file, {default!r} in its schema")
    return found


def _defaults(schema: type) -> Mapping[str, object]:
    found = OmegaConf.to_container(OmegaConf.structured(schema))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def test_a_difference_between_file_and_schema_is_found() -> None:
    said = {"trials": 3, "name": "${a.b}", "limits": {"macs": 1.0, "parameters": 2}, "free": 5}
    declared = {"trials": 3, "name": "x", "limits": {"macs": None, "parameters": 2.0}, "free": "???"}
    assert [each.split(" ")[0] for each in _differences(said, declared, "search")] == [
        "search.limits.macs",
        "search.limits.parameters",
    ]


def test_files_and_schemas_agree_on_every_default() -> None:
    files = {Path(f"{name}.yaml"): command_of(name)[1] for name in COMMANDS}
    files |= {Path(f"accuracy/{name}.yaml"): schema for name, schema in settings.ACCURACY_SCHEMAS.items()}
    files |= {
        Path("train/final.yaml"): settings.FinalRecipeSettings,
        Path("profile/table.yaml"): settings.TableSettings,
    }
    found = []
    for path, schema in files.items():
        said = yaml.safe_load((CONFIG_FOLDER / path).read_text())
        said.pop("defaults", None)
        found += _differences(said, _defaults(schema), path.stem)
    assert found == []


@pytest.mark.parametrize(
    ("schema", "plain"),
    [
        (settings.TableSettings, TableEffort),
        (settings.AugmentConfig, Augment),
        (settings.DatasetConfig, DatasetSettings),
    ],
)
def test_objects_made_of_settings_have_their_defaults(schema: type, plain: type) -> None:
    declared = _defaults(schema)
    own = {each.name: each for each in dataclasses.fields(plain) if each.name in declared}
    # Sections within are objects of their own, or none.
    shared = {
        name: each.default
        for name, each in own.items()
        if each.default is not dataclasses.MISSING and not isinstance(declared[name], dict)
    }
    assert shared
    assert shared == {name: declared[name] for name in shared}


def test_every_field_of_the_schemas_is_explained() -> None:
    modules = [settings, *(command_of(name)[0] for name in COMMANDS)]
    classes = {
        found
        for module in modules
        for _, found in inspect.getmembers(module, dataclasses.is_dataclass)
        if isinstance(found, type) and re.search(r"(Config|Settings)$", found.__name__)
    }
    for found in classes - {DatasetSettings}:
        types = get_type_hints(found)
        for each in dataclasses.fields(found):
            if types[each.name] is Any or dataclasses.is_dataclass(types[each.name]):
                continue  # a group: what is in it is explained there
            explained = "".join(base.__doc__ or "" for base in found.__mro__ if base is not object)
            assert f"        {each.name}: " in explained, f"{found.__name__}.{each.name}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_names_every_choice_and_key(name: str) -> None:
    text = help_text(name)
    folder = command_of(name)[0].__name__.split(".")[0]
    assert f"python -m {folder}.{name}" in text
    assert "--cfg job" in text
    assert max(len(line) for line in text.splitlines()) <= 120
    shared = {group for group in groups_of(name) if len(choices_of(group)) == 1}
    for group in groups_of(name).keys() - shared:
        for choice in choices_of(group):
            assert re.search(rf"^ .* {choice} ", text, re.MULTILINE), choice
    whole = OmegaConf.to_container(composed(name))
    assert isinstance(whole, dict)
    own = {key: value for key, value in whole.items() if key not in groups_of(name) or key in shared}
    for key, value in own.items():
        for field in set(value) if isinstance(value, dict) else {key}:
            assert f"{field!s}:" in text


def test_texts_name_keys_and_commands_that_exist() -> None:
    """What messages name is there to be typed."""
    keys = {"profile.import", "validate.import"}
    for name in COMMANDS:
        keys |= {*key_kinds(command_of(name)[1])}
    sections = {key[: key.index(".")] for key in keys if "." in key}
    parts = {key[: match.start()] for key in keys for match in re.finditer(r"\.", key)}
    # Files, what a fingerprint holds, and words of code.
    others = {
        "study.journal",
        "supernet.safetensors",
        "study.optimize",
        "dataset.content",
        "accuracy.content",
    }
    named = re.compile(rf"(?<![\w./])((?:{'|'.join(sections)})\.[a-z]\w*(?:\.\w+)*)|\bpython -m (nas\.\w+)")
    found = [
        (f"{path.name}:{node.lineno}", key, command)
        for path in sorted(Path(nas.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.lineno > 1  # of code
        for key, command in named.findall(node.value)
    ]
    assert len(found) > 100
    assert {(place, key) for place, key, _ in found if key and key not in keys | parts | others} == set()
    known = {f"nas.{name}" for name in (*COMMANDS, "completion", "COMMAND")}
    assert {(place, command) for place, _, command in found if command and command not in known} == set()


def test_every_command_is_known_here() -> None:
    assert sorted(COMMANDS) == commands()


def test_help_shows_the_keys_of_a_choice() -> None:
    assert "label_smoothing: 0.1       # share" in help_text("search", ["accuracy=train"])
    assert "label_smoothing" not in help_text("search")


def test_help_is_printed_by_the_command() -> None:
    command = [sys.executable, "-m", "nas.report", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Rebuild the report")
    assert "folder of another study" in done.stdout
    assert "GROUP=CHOICE" not in done.stdout  # it has no groups


def test_help_ends_quietly_where_who_reads_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "argv", ["report", "--help"])
        monkeypatch.setattr(sys, "stdout", gone)
        nas.command.command("report", ReportConfig, lambda config: None)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["search", "hardware=rpi"], ["hardware=rpi3", "hardware=rpi4", "hardware=rpi5"]),
        (["search", "sampler=ba"], ["sampler=bayesian"]),
        (["search", "accuracy=train", "accuracy.ep"], ["accuracy.epochs="]),
        (["search", "accuracy.ep"], []),
        (["profile", "profile.k"], ["profile.kit="]),
        (["nonsense", ""], []),
    ],
)
def test_completion(words: list[str], found: list[str]) -> None:
    assert completions(words) == found


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("python -m nas.search hardware=rp", ["rpi3", "rpi4", "rpi5"]),
        ("python -m nas.search hardware=", ["host", "note10", "rpi3", "rpi4", "rpi5", "ssh"]),
        ("python -m nas.search sampler=tpe search.caut", ["search.caution="]),
        ("python -m pytest hardware=rp", []),
    ],
)
def test_completion_in_bash(typed: str, found: list[str]) -> None:
    # What bash hands to a completion function: `=` is a word of its own.
    words = [each for each in re.split(r"( |=)", typed) if each.strip()] + [""] * typed.endswith("=")
    script = (
        f'eval "$({sys.executable} -m nas.completion)"\n'
        f"COMP_LINE={shlex.quote(typed)} COMP_POINT={len(typed)} COMP_WORDS=({shlex.join(words)})\n"
        f'COMP_CWORD={len(words) - 1}\n_mobilenet_nas {sys.executable}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == found
