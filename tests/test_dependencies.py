"""What is imported is declared, and what is declared is imported."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Used through others: PostgreSQL's driver by SQLAlchemy, onnxscript by torch.onnx.
INDIRECT = {"psycopg", "onnxscript"}


_installed = functools.cache(packages_distributions)


def _names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", each)[0].lower().replace("_", "-") for each in requirements}  # type: ignore[index]


def _imported(*folders: str) -> Iterator[str]:
    """Top-level modules of other people that are imported anywhere in these folders."""
    ours = {"nas", "search_spaces", "tools", "tests"}
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                else:
                    continue
                tops = {name.split(".")[0] for name in names}
                yield from tops - ours - set(sys.stdlib_module_names)


def _distributions(modules: set[str]) -> dict[str, set[str]]:
    """Of each module the packages that it may come from, itself where it is not installed."""
    known = _installed()
    return {each: {name.lower().replace("_", "-") for name in known.get(each, [each])} for each in modules}


def test_what_is_imported_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = _names(PROJECT["dependencies"])
    optional = wanted.union(*(_names(each) for name, each in extras.items() if name != "test"))
    for module, packages in _distributions(set(_imported("nas", "search_spaces"))).items():
        assert packages & optional, f"{module} of {packages} is in no list of pyproject.toml"
    everything = optional | _names(extras["test"])
    for module, packages in _distributions(set(_imported("tools", "tests"))).items():
        assert packages & everything, f"{module} of {packages} is in no list of pyproject.toml"


def test_what_is_declared_is_imported() -> None:
    found = _distributions(set(_imported("nas", "search_spaces")))
    used = set[str]().union(*found.values())
    extras = PROJECT["optional-dependencies"]
    for name in ("", *sorted(set(extras) - {"test"})):
        declared = _names(extras[name] if name else PROJECT["dependencies"])
        assert declared - used - INDIRECT == set(), name
