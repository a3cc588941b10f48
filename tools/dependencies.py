"""Which packages this project resolves to: versions to reproduce results with, and their licences.

python -m tools.dependencies --output results        # constraints.txt and dependencies.md
pip install -c results/constraints.txt '.[test]'     # the versions of the figures in results/
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from nas.saving import markdown_text, write_together

_PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def resolved(requirements: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """Installed packages that requirements need, theirs included, by normalised name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [Requirement(each) for each in requirements]
    walked: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if (name, frozenset(wanted.extras)) in walked:
            continue
        walked.add((name, frozenset(wanted.extras)))
        try:
            found[name] = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for each in map(Requirement, found[name].requires or []):
            extras = wanted.extras or {""}
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(each)
    return dict(sorted(found.items()))


def licence(distribution: importlib.metadata.Distribution) -> str:
    """A package's own statement of its licence, in one line."""
    metadata = distribution.metadata.json
    classifiers = metadata.get("classifier", [])
    named = [each.rpartition("::")[2].strip() for each in classifiers if each.startswith("License ::")]
    return (
        str(metadata.get("license_expression", ""))
        or ", ".join(named)
        or _first_line(str(metadata.get("license", "")))
    )


def _first_line(text: str) -> str:
    return (text or "not stated").splitlines()[0][:60]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the two files")
    folder = parser.parse_args().output
    project = tomllib.loads(_PROJECT.read_text())["project"]
    used = resolved(project["dependencies"])
    tested = resolved(project["dependencies"] + project["optional-dependencies"]["test"])
    lines = [
        "# Dependencies",
        "",
        f"`python -m tools.dependencies --output results`, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}: what the project resolves to, and what the packages say "
        "of their licences. `constraints.txt` beside it holds the versions. What is marked (test) is for "
        "tests and development alone. torch's plain wheel for Linux brings NVIDIA's libraries with their own "
        "licence; the CPU wheels of PyTorch's own index do not.",
        "",
        "| package | version | licence |",
        "|---|---|---|",
        *(
            f"| {name}{'' if name in used else ' (test)'} | {each.version} | {markdown_text(licence(each))} |"
            for name, each in tested.items()
        ),
    ]
    constraints = "".join(f"{name}=={each.version}\n" for name, each in tested.items())
    write_together(folder, {"dependencies.md": "\n".join(lines) + "\n", "constraints.txt": constraints})


if __name__ == "__main__":
    main()
