"""Give files made to hurt to the commands that read them, as a user would.

    python -m tools.hostile_cases FOLDER

The first part of a file's name says what it pretends to be (``board-1a2b``, ``card-3c4d``). Each command runs
in a folder of its own and must end well, or with one error line and exit code 2, without a traceback, and
write nothing beside its results.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

from tools.crash_test import COMMANDS, SPACE, prepare, run

_SEARCH = ["nas.search", "accuracy=proxy", "search.trials=1", "search.screen=0", "search.references=[]"]
_ESTIMATED = [*_SEARCH, "hardware=rpi4", "search_space=space.yaml"]
_PROFILE = COMMANDS["profile"]
_TABLE = "results/latency/host-onnxruntime-fp32-1t"
_MEASURED = [*_SEARCH, *_PROFILE[1:]]
# Where a file goes, and the command that reads it there.
_READ_BY: dict[str, tuple[str, list[str]]] = {
    "architecture": (
        "case.yaml",
        ["nas.export", "export.architecture=case.yaml", "export.output=model.onnx"],
    ),
    "board": ("case.yaml", [*_SEARCH, "hardware=case.yaml", "search_space=space.yaml"]),
    "space": ("case.yaml", [*_SEARCH, "hardware=rpi4", "search_space=case.yaml"]),
    "card": (f"{_TABLE}/card.json", _MEASURED),
    "table_csv": (f"{_TABLE}/table.csv", _MEASURED),
    "table_json": (f"{_TABLE}/table.json", _MEASURED),
    "networks": (f"{_TABLE}/networks.json", _MEASURED),
    "rounds": (f"{_TABLE}/partial-1.jsonl", [*_PROFILE, "profile.max_keys=14"]),
    "kit": ("case.jsonl", ["nas.profile", "hardware=rpi4", "profile.import=case.jsonl"]),
    "extra": ("case.csv", [*_ESTIMATED[:1], *_ESTIMATED[2:], "accuracy.extra=case.csv"]),
    "accel": ("case.csv", ["nas.predictor", "fit", "data=.", "accel=case.csv", "evaluate=false"]),
    "accuracy_table": (
        "case.csv",
        [*_ESTIMATED[:1], *_ESTIMATED[2:], "accuracy=table", "accuracy.path=case.csv"],
    ),
    "checkpoint": (
        "case.safetensors",
        ["nas.export", "export.architecture=mobilenet_v3_small", "export.weights=case.safetensors"],
    ),
    "report": ("results/study/study.journal", ["nas.report", "study=results/study"]),
}
_READ_BY["space_hydra"] = _READ_BY["space"]
_READ_BY["study"] = _READ_BY["report"]
_LONGEST_LINE = 500
_LONGEST_S = 120


def outcome_of(case: Path, template: Path, work: Path) -> tuple[str, list[str]]:
    """(what a command made of a file, what is wrong with that)."""
    place, words = _READ_BY[case.name.partition("-")[0]]
    folder = work / case.name
    shutil.copytree(template, folder)
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(case, folder / place)
    before = {each.name for each in work.iterdir()}
    code, printed, _ = run(words, folder, _LONGEST_S)
    errors = [line for line in printed.splitlines() if line.startswith("error:")]
    problems = []
    if "Traceback" in printed:
        problems.append(printed.strip()[-300:])
    if code not in (0, 2) or (code == 2 and len(errors) != 1):
        problems.append(f"exit code {code}, {len(errors)} error lines: {printed.strip()[-300:]}")
    if any(len(line.replace(str(folder), "")) > _LONGEST_LINE for line in errors):
        problems.append("a long error")
    if {each.name for each in work.iterdir()} - before:
        problems.append("wrote outside its folder")
    shutil.rmtree(folder)
    return (errors[0] if errors else "accepted"), problems


def main() -> None:
    """Try all files of a folder, print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    cases = [each for each in sorted(arguments.folder.iterdir()) if each.name.partition("-")[0] in _READ_BY]
    prepare(("nas.predictor", "nas.report"))
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) / "work"
        work.mkdir()
        template = Path(temporary) / "template"
        template.mkdir()
        (template / "space.yaml").write_text(SPACE)
        code, printed, _ = run(_PROFILE, template)
        assert code == 0, printed
        for case in cases:
            began = os.times()
            said, problems = outcome_of(case, template, work)
            ended = os.times()
            seconds = (
                ended.children_user + ended.children_system - began.children_user - began.children_system
            )
            wrong += bool(problems)
            print(f"{case.name}: {seconds:.1f} s of processor, {said[:150]} {problems or ''}", flush=True)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    print(f"{len(cases)} files, {wrong} ended wrongly, peak memory of a command {peak_mb:,.0f} MB")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
