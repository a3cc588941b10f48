"""``python -m nas.profile``: measure a latency table on the target hardware."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from nas.assembly import hardware_of, runtime_of
from nas.command import command
from nas.console import console, measuring_progress, print_summary, print_table_summary, warn
from nas.devices.device import Target
from nas.devices.kit import check_kit, groups_of, read_result, write_kit
from nas.latency.hardware import Hardware, import_result
from nas.latency.once_for_all import once_for_all
from nas.latency.plan import Plan, TableEffort, calibration_networks, make_plan, seconds_needed
from nas.latency.provision import load_table, profile_command, reference_architectures, table_folder
from nas.latency.recovery import resumed
from nas.latency.sessions import TABLE, Bench, profile
from nas.measuring.conditions import PACKAGES, affine_to
from nas.measuring.progress import ProfileProgress
from nas.runtimes.runtime import Runtime
from nas.saving import check_output, hold, write_atomically
from nas.settings import Chosen, HardwareConfig, ProfileSettings, RuntimeConfig
from nas.shell import file_word
from search_spaces.errors import InputError
from search_spaces.layers import layer_keys, reachable_layer_keys
from search_spaces.space import SearchSpace


@dataclass
class ProfileConfig:
    """Everything ``python -m nas.profile`` can be told."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    search_space: Chosen = None
    profile: ProfileSettings = field(default_factory=ProfileSettings)


def main(config: ProfileConfig) -> None:
    """Measure, predict, calibrate and write the table; or say what that would take."""
    hardware = config.hardware
    settings = config.profile
    runtime = runtime_of(config.runtime)
    space = SearchSpace.from_dict(config.search_space)
    folder = table_folder(Path(settings.folder), hardware.name, runtime)
    board = hardware_of(hardware)
    if settings.import_file:
        _import(Path(settings.import_file), board, runtime, space, folder)
        return
    if settings.export:
        _export(Path(settings.export), board, runtime, folder)
        return
    if settings.kit:
        check_kit(Path(settings.kit), "profile.kit")
        runtime.check_board()
    target = None if settings.kit else board.target(runtime, settings.seed, console.print)
    if target is None and not settings.kit:
        raise InputError(
            f"hardware={board.name} is not this machine; measure it with: {board.how_to_measure(runtime)}"
        )
    writing = target is not None and not settings.dry_run
    with hold(folder, TABLE) if writing else nullcontext():
        _profile(target, board, runtime, space, folder, settings)


def _profile(
    target: Target | None,
    board: Hardware,
    runtime: Runtime,
    space: SearchSpace,
    folder: Path,
    settings: ProfileSettings,
) -> None:
    device, version = target.identity() if target else (None, None)
    networks = functools.partial(calibration_networks, space, settings.networks, settings.seed)
    table = load_table(folder, board.name, runtime, device, version, networks, console.print)

    def bench(progress: ProfileProgress) -> Bench:
        assert target is not None
        return Bench(target, runtime, board.name, folder, settings.rounds, progress, console.print)

    if target is not None and not settings.dry_run:
        with measuring_progress() as progress:
            table = resumed(bench(progress), table, networks)
    effort = TableEffort(settings.max_keys, settings.networks, settings.seed)
    plan = make_plan(space, reference_architectures(space).values(), effort, table)
    console.print(
        f"{board.name} ({device or 'by kit'}), {runtime.name} {version or ''}, "
        f"{runtime.precision}, {runtime.threads} thread{'' if runtime.threads == 1 else 's'}; "
        f"space {space.name}: {len(reachable_layer_keys(space)):,} layers reachable"
    )
    duration = "the board says how long"
    if board.measured_here and target:
        with affine_to(board.affinity):
            duration = f"about {seconds_needed(runtime, plan, settings.rounds) / 60:.1f} minutes"
    if plan.keys or plan.networks:
        console.print(
            f"to measure: {len(plan.keys):,} layers and {len(plan.networks)} networks in {settings.rounds} "
            f"rounds, {duration}; to predict, with those of the networks: {len(plan.predicted):,} layers"
        )
    else:
        console.print("nothing to measure: the table is complete")
    if settings.dry_run:
        return
    if target is None:
        _write_kit(Path(str(settings.kit)), board, runtime, plan, settings)
        return
    with measuring_progress() as progress:
        table = profile(bench(progress), plan, table)
    print_table_summary(table, folder, profile_command(board.name, runtime, "validate"))


def _write_kit(path: Path, board: Hardware, runtime: Runtime, plan: Plan, settings: ProfileSettings) -> None:
    with measuring_progress() as progress:
        write_kit(
            path,
            board.kit_settings(runtime, settings.rounds, settings.seed),
            groups_of([*plan.keys, *plan.networks]),
            progress.prepared,
        )
    rows = {
        "kit": f"{path} ({path.stat().st_size / 1e6:.1f} MB)",
        "it needs": f"Python 3.9, pip install numpy {PACKAGES[runtime.name]}",
        "then here": profile_command(
            board.name, runtime, profile__import=str(path.with_name(f"{path.stem}-result.jsonl"))
        ),
    }
    print_summary("measuring kit", rows, f"python3 {file_word(path.name)}    on the board")


def _export(path: Path, board: Hardware, runtime: Runtime, folder: Path) -> None:
    """Write the table there is in once-for-all's form."""
    table = load_table(folder, board.name, runtime, say=console.print)
    if table is None:
        raise InputError(
            f"there is no latency table in {folder} yet; measure it with: {board.how_to_measure(runtime)}"
        )
    made = once_for_all(table)
    check_output(path, "profile.export", size_bytes=len(made.text))
    write_atomically(path, made.text)
    rows = {
        "table": table.header.title,
        "layers": f"{made.layers:,}; {made.left_out:,} have no name there and are left out",
        "file": str(path),
    }
    print_summary(
        "once-for-all's latency table", rows, f"MBv3LatencyTable(url={str(path)!r})    in once-for-all"
    )


def _import(path: Path, board: Hardware, runtime: Runtime, space: SearchSpace, folder: Path) -> None:
    result = read_result(path, board.name, runtime)
    for problem in result.problems:
        warn(f"warning: {path}: {problem}; run the kit again on the board to go on")
    references = reference_architectures(space).values()
    wanted = reachable_layer_keys(space).union(*(layer_keys(each) for each in references))
    with hold(folder, TABLE):
        table = load_table(
            folder, board.name, runtime, result.device, result.runtime_version, say=console.print
        )
        table = import_result(result, runtime, board.name, folder, sorted(wanted, key=str), table)
    print_table_summary(table, folder, profile_command(board.name, runtime, "search"))


if __name__ == "__main__":
    command("profile", ProfileConfig, main)
