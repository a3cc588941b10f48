"""``python -m nas.profile``: measure a latency table on the target hardware."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.config import HardwareConfig, ProfileSettings, RuntimeConfig, command, plain, read_space
from nas.console import console, measuring_progress, print_table_summary
from nas.devices import LocalTarget
from nas.layers import reachable_layer_keys
from nas.profiling import make_plan, profile, seconds_needed
from nas.runtimes import Runtime
from nas.tables import load_table, profile_command, reference_architectures, table_folder


@dataclass
class ProfileConfig:
    """Everything ``python -m nas.profile`` can be told."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    search_space: Any = None
    profile: ProfileSettings = field(default_factory=ProfileSettings)


def main(config: Any) -> None:
    """Measure, predict, calibrate and write the table; or say what that would take."""
    hardware = plain(config.hardware, HardwareConfig)
    settings = plain(config.profile, ProfileSettings)
    runtime = Runtime(config.runtime.name, config.runtime.precision, config.runtime.threads)
    space = read_space(config.search_space)
    folder = table_folder(Path(settings.folder), hardware.name, runtime)
    target = LocalTarget(runtime, settings.seed)
    table = load_table(folder, hardware.name, runtime, target.device, runtime.version())
    plan = make_plan(
        space,
        reference_architectures(space).values(),
        settings.max_keys,
        settings.networks,
        settings.seed,
        table,
    )
    console.print(
        f"[bold]{hardware.name}[/] ({target.device}), {runtime.name} {runtime.version()}, "
        f"{runtime.precision}, {runtime.threads} thread(s); space {space.name}: "
        f"{len(reachable_layer_keys(space)):,} layers reachable"
    )
    seconds = seconds_needed(target, runtime, plan, settings.rounds)
    console.print(
        f"to measure: {len(plan.keys):,} layers and {len(plan.networks)} networks in {settings.rounds} "
        f"rounds, about {seconds / 60:.1f} minutes; to predict: {len(plan.predicted):,} layers"
    )
    if settings.dry_run:
        return
    with measuring_progress() as progress:
        table = profile(
            target,
            runtime,
            hardware.name,
            plan,
            folder,
            settings.rounds,
            table,
            progress,
            profile_command(hardware.name, runtime),
        )
    print_table_summary(table, folder, f"python -m nas.validate hardware={hardware.name}")


if __name__ == "__main__":
    command("profile", ProfileConfig, main)
