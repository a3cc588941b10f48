"""``python -m nas.validate``: how far off the latency table is, on networks it has never seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nas.assembly import hardware_of, runtime_of
from nas.command import command
from nas.console import console, measuring_progress, print_columns, print_summary
from nas.devices.kit import MeasuredTarget, check_kit, read_result, write_kit
from nas.latency.end_to_end import timing_subjects
from nas.latency.hardware import Hardware
from nas.latency.plan import CALIBRATION_REFERENCES, TableEffort
from nas.latency.provision import (
    load_table,
    profile_command,
    ready_table,
    reference_architectures,
    table_folder,
)
from nas.latency.sessions import Bench, NetworkRecord, fill_gaps, load_networks
from nas.latency.table import LatencyTable
from nas.latency.validation import (
    FAMILY_COLUMNS,
    Validation,
    family_rows,
    fresh_networks,
    save,
    validate,
)
from nas.measuring.conditions import PACKAGES
from nas.runtimes.runtime import Runtime
from nas.saving import check_folder
from nas.settings import (
    ROUNDS,
    Chosen,
    HardwareConfig,
    RuntimeConfig,
    TableSettings,
    at_least,
    at_most_one,
)
from nas.shell import file_word
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.layers import layer_keys
from search_spaces.references import FAMILIES
from search_spaces.space import SearchSpace


@dataclass
class ValidationSettings:
    """The networks, rounds and files of a validation.

    Attributes:
        networks: fresh random members besides the references.
        rounds: steady rounds wanted.
        seed: of the random members.
        kit: write what is to be measured to this zip file instead, for a board without network.
        import_file: validate with what the kit's runner wrote; ``validate.import=``.
    """

    networks: int = 60
    rounds: int = ROUNDS
    seed: int = 1
    kit: str | None = None
    import_file: str | None = None

    def __post_init__(self) -> None:
        at_least("validate.networks", self.networks, 0)
        at_least("validate.rounds", self.rounds, 1)
        at_most_one({"validate.kit": self.kit, "validate.import": self.import_file})


@dataclass
class ValidateConfig:
    """Everything ``python -m nas.validate`` can be told."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    search_space: Chosen = None
    profile: TableSettings = field(default_factory=TableSettings)
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
    if settings.kit:
        check_kit(Path(settings.kit), "validate.kit")
        runtime.check_board()
    else:  # the card goes there, after minutes of measuring
        check_folder(folder, "profile.folder", overwrite=True)
    if settings.kit or settings.import_file:
        _by_kit(settings, board, runtime, space, references, folder, profiling.seed)
        return
    target = board.target(runtime, profiling.seed, console.print)
    if target is None:
        over_ssh = profile_command(board.name, runtime, "validate", hardware__host="USER@BOARD")
        by_kit = profile_command(board.name, runtime, "validate", validate__kit=f"{board.name}-check.zip")
        raise InputError(
            f"hardware={board.name} is not this machine; validate it with: {over_ssh}, or without network: "
            f"{by_kit}"
        )
    effort = TableEffort(profiling.max_keys, profiling.networks, profiling.seed)
    with measuring_progress() as progress:
        bench = Bench(target, runtime, board.name, folder, profiling.rounds, progress, console.print)
        table = ready_table(bench, space, list(references.values()), effort)
        known = load_networks(folder)
        judged, shown = _networks(space, references, settings, known, table)
        validation = validate(table, judged, shown, replace(bench, rounds=settings.rounds), known)
    _finish(validation, table, board.name, runtime, folder)


def _networks(
    space: SearchSpace,
    references: Mapping[str, Architecture],
    settings: ValidationSettings,
    known: Sequence[NetworkRecord],
    table: LatencyTable,
) -> tuple[dict[str, Architecture], dict[str, Architecture]]:
    """Networks that a table is judged by, and those that are shown beside them."""
    used = [record.architecture for record in known]
    fresh = fresh_networks(space, settings.networks, settings.seed, used, table)
    # References are shown; those the calibration was fitted on do not count as fresh.
    judged = {each.id: each for each in fresh}
    judged |= {name: each for name, each in references.items() if each not in used}
    return judged, {name: each for name, each in references.items() if each in used}


def _by_kit(
    settings: ValidationSettings,
    board: Hardware,
    runtime: Runtime,
    space: SearchSpace,
    references: Mapping[str, Architecture],
    folder: Path,
    seed: int,
) -> None:
    """Write the kit of a validation, or read what came back.

    Raises:
        InputError: if the board has no table yet, or the result is of another validation.
    """
    table = load_table(folder, board.name, runtime, say=console.print)
    if table is None:
        raise InputError(
            f"there is no latency table in {folder} to validate yet; measure one: "
            f"{board.how_to_measure(runtime)}"
        )
    known = load_networks(folder)
    judged, shown = _networks(space, references, settings, known, table)
    networks = [*judged.values(), *shown.values()]
    table = fill_gaps(
        table, table.missing(dict.fromkeys(key for each in networks for key in layer_keys(each)))
    )
    judged, shown = table.runnable(judged), table.runnable(shown)
    networks = [*judged.values(), *shown.values()]
    if settings.kit:
        path = Path(settings.kit)
        subjects = timing_subjects(networks, table, known)
        with measuring_progress() as progress:
            kit = replace(board.kit_settings(runtime, settings.rounds, seed), precise=tuple(networks))
            write_kit(path, kit, [subjects], progress.prepared)
        result = str(path.with_name(f"{path.stem}-result.jsonl"))
        rows = {
            "kit": f"{path}: {len(networks)} networks, {settings.rounds} rounds",
            "it needs": f"Python 3.9, pip install numpy {PACKAGES[runtime.name]}",
            "then here": profile_command(
                board.name,
                runtime,
                "validate",
                validate__import=result,
                validate__networks=str(settings.networks),
                validate__seed=str(settings.seed),
            ),
        }
        print_summary("validation kit", rows, f"python3 {file_word(path.name)}    on the board")
        return
    result_of_board = read_result(Path(str(settings.import_file)), board.name, runtime)
    if result_of_board.device != table.header.device:
        raise InputError(
            f"{settings.import_file} is of {result_of_board.device}, the latency table of "
            f"{table.header.device}"
        )
    bench = Bench(MeasuredTarget(result_of_board), runtime, board.name, folder, settings.rounds)
    validation = validate(table, judged, shown, bench, known)
    _finish(validation, table, board.name, runtime, folder)


def _finish(
    validation: Validation, table: LatencyTable, hardware: str, runtime: Runtime, folder: Path
) -> None:
    """Write the card and print it with the family."""
    save(validation, folder)
    print_columns(f"the MobileNets on {table.header.title}", FAMILY_COLUMNS, family_rows(validation))
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
        profile_command(hardware, runtime, "search"),
    )


if __name__ == "__main__":
    command("validate", ValidateConfig, main)
