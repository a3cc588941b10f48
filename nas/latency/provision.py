"""Where latency tables are kept, and whether one belongs to the hardware it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nas.latency.plan import Plan, TableEffort, calibration_networks, make_plan
from nas.latency.recovery import Networks, recovered, resumed
from nas.latency.sessions import PENDING, TABLE, Bench, is_measured, profile
from nas.latency.table import LatencyTable, TableError
from nas.measuring.models import PROTOCOL
from nas.runtimes.runtime import Runtime
from nas.saving import HeldError, hold
from nas.shell import measuring_line
from search_spaces.architecture import Architecture
from search_spaces.blocks import ArchitectureError
from search_spaces.gate import check_name, is_label
from search_spaces.layers import layer_keys, reachable_layer_keys
from search_spaces.references import FAMILIES, canonical_name, is_reference, reference
from search_spaces.space import SearchSpace


class StaleTableError(TableError):
    """A table measured under other conditions than those asked for."""


def table_folder(root: Path, hardware: str, runtime: Runtime) -> Path:
    """The folder of the table of a hardware, runtime, precision and thread count.

    Args:
        root: of all tables.
        hardware: name of the hardware config.
        runtime: what runs the layers.

    Raises:
        InputError: if the name of the hardware is no plain one.
    """
    check_name(hardware)
    return root / f"{hardware}-{runtime.name}-{runtime.precision}-{runtime.threads}t"


def profile_command(hardware: str, runtime: Runtime, command: str = "profile", **settings: str) -> str:
    """The command that measures what a table lacks, or another one for the same hardware and runtime.

    Args:
        hardware: name of the hardware config.
        runtime: what runs the layers.
        command: ``profile``, ``validate`` or ``search``.
        settings: further ones, see :func:`nas.shell.measuring_line`.
    """
    return measuring_line(command, hardware, runtime.name, runtime.precision, runtime.threads, **settings)


def load_table(
    folder: Path,
    hardware: str,
    runtime: Runtime,
    device: str | None = None,
    version: str | None = None,
    networks: Networks = tuple,
    say: Callable[[str], None] = lambda line: None,
) -> LatencyTable | None:
    """The table in a folder, None if there is none; one that was half-saved is completed.

    Args:
        folder: see :func:`table_folder`.
        hardware: name of the hardware config.
        runtime: what the table is wanted for.
        device: processor or board it must have been measured on, None where this is not known.
        version: version of the runtime it must have been measured with, None where this is not known.
        networks: networks that may have been measured for it.
        say: told in one line what was completed.

    Raises:
        StaleTableError: naming everything in which the table differs.
        TableError: if the table is damaged.
    """
    table = recovered(folder, hardware, runtime, networks, say)
    if table is None:
        return None
    differences = staleness(table, runtime, device, version)
    if differences:
        raise StaleTableError(
            f"the latency table in {folder} is for {'; '.join(differences)}; "
            f"move it away and measure anew with: {profile_command(hardware, runtime)}"
        )
    return table


def staleness(table: LatencyTable, runtime: Runtime, device: str | None, version: str | None) -> list[str]:
    """Every respect in which a table does not fit, in words.

    Args:
        table: the table.
        runtime: what networks are to run on.
        device: processor or board, None where it cannot be asked.
        version: of the runtime there, None likewise.
    """
    header = table.header
    pairs: Iterable[tuple[str, object, object]] = (
        ("device", header.device, device),
        ("runtime", header.runtime, runtime.name),
        (f"{header.runtime} version", header.runtime_version, version),
        ("threads", header.threads, runtime.threads),
        ("precision", header.precision, runtime.precision),
        ("measuring protocol", header.protocol, PROTOCOL),
    )
    return [
        f"{what} {has}, not {wanted}" for what, has, wanted in pairs if wanted is not None and has != wanted
    ]


def reference_architectures(
    space: SearchSpace, names: Iterable[str] = FAMILIES, resolution: int | None = None
) -> dict[str, Architecture]:
    """References by name, at the resolution given, the papers' 224 or the space's largest.

    Args:
        space: says classes and resolution.
        names: of the family, whatever their case and hyphens; or paths to tables of one's own, which keep
            their resolution and are called as their file.
        resolution: side of the image where it is not the space's own.

    Raises:
        UnknownReferenceError: if a name is not of the family.
        ArchitectureError: if a table of one's own cannot be read, or has other classes or no usable name.
    """
    side = resolution or (224 if 224 in space.resolutions else max(space.resolutions))
    found: dict[str, Architecture] = {}
    for name in names:
        if name.endswith((".yaml", ".yml")):
            path = Path(name).expanduser()
            # Beside V2 itself, a file called mobilenet_v2.yaml is somebody's own.
            label = f"own_{path.stem}" if is_reference(path.stem) else path.stem
            if not is_label(label):
                raise ArchitectureError(
                    f"the name of {name} holds what does not show, or more than 100 characters: rename it"
                )
            found[label] = _own_network(path, space.classes)
        else:
            found[canonical_name(name)] = reference(name, side, space.classes)
    return found


def _own_network(path: Path, classes: int) -> Architecture:
    network = Architecture.from_file(path)
    if network.classes != classes:
        raise ArchitectureError(
            f"{path} has {network.classes} classes, the search {classes}; set classes: {classes} in a copy"
        )
    return network


def ready_table(
    bench: Bench, space: SearchSpace, references: Sequence[Architecture], effort: TableEffort
) -> LatencyTable:
    """A table that covers a space and its references, measured now as far as it is not there yet.

    Args:
        bench: where and how to measure.
        space: every layer it can reach will be in the table.
        references: so will theirs.
        effort: how much to measure.

    Raises:
        StaleTableError: if the table there was measured under other conditions.
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
    """
    networks = functools.partial(calibration_networks, space, effort.networks, effort.seed)
    wanted = reachable_layer_keys(space).union(*(layer_keys(each) for each in references))
    table = _kept_table(bench, networks, bench.say)
    if table is not None and not table.missing(wanted):
        if table.header.calibration is None:
            bench.say(
                "the latency table is not calibrated: sums of layers; networks calibrate it: "
                f"{table.profile_command}"
            )
        return table
    with hold(bench.folder, TABLE):
        # As it is now that nobody else can change it.
        table = resumed(bench, _kept_table(bench, networks, bench.say), networks)
        plan = make_plan(space, references, effort, table)
        what = "no latency table yet" if table is None else "the latency table lacks layers of this space"
        bench.say(
            f"{what}: measuring {len(plan.keys):,} layers and {len(plan.networks)} networks on "
            f"{bench.target.identity()[0]}, predicting {len(plan.predicted):,} from them"
        )
        return profile(bench, plan, table)


def measure_layers(table: LatencyTable, architectures: Iterable[Architecture], bench: Bench) -> LatencyTable:
    """The table with every layer of some networks measured instead of predicted.

    What is measured is added to the table in the folder, which may hold more than ``table`` by now: measured
    layers that it holds already are taken from there. Nothing else of ``table`` changes.

    Args:
        table: the table as a study knows it.
        architectures: the networks.
        bench: where and how to measure.

    Raises:
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
    """
    keys = {
        key: None
        for architecture in architectures
        for key, entry in table.layer_latencies(architecture)
        if entry.source == "predicted"
    }
    if not keys:
        return table
    bench = replace(bench, hardware=table.header.hardware)
    with hold(bench.folder, TABLE, bench.say):
        kept = _kept_table(bench)
        # A process may have died over the front as it was then.
        shared = resumed(bench, kept or table) or kept or table
        plan = Plan(keys=tuple(key for key in keys if not is_measured(shared, key)), networks=())
        if plan.keys:
            shared = profile(bench, plan, shared)
    return table.with_entries({key: shared.entries[key] for key in keys}, sessions=shared.header.sessions)


def finish_interrupted(bench: Bench) -> None:
    """Go on with a session over which a process died, unless another process is at it.

    Args:
        bench: where and how to measure.

    Raises:
        nas.measuring.rounds.MeasurementError: if the machine did not hold still.
    """
    if not (bench.folder / PENDING).exists():
        return
    # A table that this cannot extend is a matter of the command that measures.
    with suppress(HeldError, TableError), hold(bench.folder, TABLE):
        resumed(bench, _kept_table(bench))


def _kept_table(
    bench: Bench, networks: Networks = tuple, say: Callable[[str], None] = lambda line: None
) -> LatencyTable | None:
    """The table in the bench's folder, if it was measured on this very device; see :func:`load_table`."""
    return load_table(bench.folder, bench.hardware, bench.runtime, *bench.target.identity(), networks, say)
