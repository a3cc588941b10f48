"""``python -m nas.validate``: how far off the latency table is, on networks it has never seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from nas.assembly import hardware_of, runtime_of
from nas.command import command
from nas.console import console, measuring_progress, print_summary
from nas.latency.plan import CALIBRATION_REFERENCES
from nas.latency.provision import Effort, profile_command, ready_table, reference_architectures, table_folder
from nas.latency.sessions import load_networks
from nas.latency.validation import FAMILY_COLUMNS, family_rows, fresh_networks, save, validate
from nas.settings import Chosen, HardwareConfig, ProfileSettings, RuntimeConfig
from search_spaces.errors import InputError
from search_spaces.references import FAMILIES
from search_spaces.space import SearchSpace


@dataclass
class ValidationSettings:
    """How to validate.

    Attributes:
        networks: fresh random members besides the references.
        rounds: steady rounds wanted.
        seed: of the random members.
    """

    networks: int = 60
    rounds: int = 40
    seed: int = 1


@dataclass
class ValidateConfig:
    """Everything ``python -m nas.validate`` can be told."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    search_space: Chosen = None
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    validate: ValidationSettings = field(default_factory=ValidationSettings)


def main(config: ValidateConfig) -> None:
    """Measure fresh networks, write the card, print the family on this device."""
    settings = config.validate
    profiling = config.profile
    runtime = runtime_of(config.runtime)
    space = SearchSpace.from_dict(config.search_space)
    folder = table_folder(Path(profiling.folder), config.hardware.name, runtime)
    references = reference_architectures(space, dict.fromkeys([*FAMILIES, *CALIBRATION_REFERENCES]))
    board = hardware_of(config.hardware)
    target = board.target(runtime, profiling.seed, console.print)
    if target is None:
        raise InputError(
            f"hardware={board.name} is not this machine; validate it with: "
            f"{profile_command(board.name, runtime, 'validate', hardware__host='USER@BOARD')}"
        )
    effort = Effort(profiling.max_keys, profiling.networks, profiling.rounds, profiling.seed)
    with measuring_progress() as progress:
        table = ready_table(
            space,
            list(references.values()),
            target,
            runtime,
            config.hardware.name,
            folder,
            effort,
            progress,
            console.print,
        )
        known = load_networks(folder)
        used = [record.architecture for record in known]
        fresh = fresh_networks(space, settings.networks, settings.seed, used)
        # References are shown; those the calibration was fitted on do not count as fresh.
        judged = {each.id: each for each in fresh}
        judged |= {name: each for name, each in references.items() if each not in used}
        shown = {name: each for name, each in references.items() if each in used}
        validation = validate(table, judged, shown, target, folder, settings.rounds, progress, known)
    save(validation, folder)
    family = Table(title=f"the MobileNets on {table.header.title}", title_justify="left")
    for column in FAMILY_COLUMNS:
        family.add_column(column, overflow="fold")
    for row in family_rows(validation):
        family.add_row(*row)
    console.print(family)
    card = validation.card
    rows = {
        "calibrated": str(card.calibrated),
        "sums of layers": str(card.uncorrected),
        "predicted layers": f"{card.predicted_layers:.0%} of the layers of these networks",
        "drift since the table": f"{card.drift:+.1%} (taken out)",
        "verdict": "good"
        if card.is_good
        else f"poor ({', '.join(card.faults)}): profile again with nothing else running",
        "files": f"{folder}/card.md, card.json, validation.csv, validation.png",
    }
    print_summary(
        f"validation on {card.calibrated.networks} fresh networks",
        rows,
        profile_command(config.hardware.name, runtime, "search"),
    )


if __name__ == "__main__":
    command("validate", ValidateConfig, main)
