"""Where latency tables are kept, and whether one belongs to the hardware it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nas.latency import LatencyTable, TableError
from nas.runtimes import Runtime
from search_spaces.block import Architecture
from search_spaces.mobilenet import FAMILIES, reference
from search_spaces.space import SearchSpace


class StaleTableError(TableError):
    """A table measured under other conditions than those asked for."""


def table_folder(root: Path, hardware: str, runtime: Runtime) -> Path:
    """The folder of the table of a hardware, runtime, precision and thread count."""
    return root / f"{hardware}-{runtime.name}-{runtime.precision}-{runtime.threads}t"


def profile_command(hardware: str, runtime: Runtime) -> str:
    """The command that measures what a table lacks."""
    parts = ["python -m nas.profile", f"hardware={hardware}"]
    if runtime.name != "onnxruntime":
        parts.append(f"runtime={runtime.name}")
    if runtime.precision != "fp32":
        parts.append(f"runtime.precision={runtime.precision}")
    if runtime.threads != 1:
        parts.append(f"hardware.threads={runtime.threads}")
    return " ".join(parts)


def load_table(
    folder: Path, hardware: str, runtime: Runtime, device: str | None = None, version: str | None = None
) -> LatencyTable | None:
    """The table in a folder, None if there is none.

    Args:
        folder: see :func:`table_folder`.
        hardware: name of the hardware config.
        runtime: what the table is wanted for.
        device: processor or board it must have been measured on, None where this is not known.
        version: version of the runtime it must have been measured with, None where this is not known.

    Raises:
        StaleTableError: naming everything in which the table differs.
        TableError: if the table is damaged.
    """
    command = profile_command(hardware, runtime)
    if not (folder / "table.json").exists():
        return None
    table = LatencyTable.load(folder, command)
    differences = staleness(table, runtime, device, version)
    if differences:
        raise StaleTableError(
            f"the latency table in {folder} is for {'; '.join(differences)}; "
            f"move it away and measure anew with: {command}"
        )
    return table


def staleness(
    table: LatencyTable, runtime: Runtime, device: str | None = None, version: str | None = None
) -> list[str]:
    """Every respect in which a table does not fit, in words."""
    header = table.header
    pairs: Iterable[tuple[str, object, object]] = (
        ("device", header.device, device),
        ("runtime", header.runtime, runtime.name),
        (f"{header.runtime} version", header.runtime_version, version),
        ("threads", header.threads, runtime.threads),
        ("precision", header.precision, runtime.precision),
    )
    return [
        f"{what} {has}, not {wanted}" for what, has, wanted in pairs if wanted is not None and has != wanted
    ]


def reference_architectures(space: SearchSpace, resolution: int | None = None) -> dict[str, Architecture]:
    """The hand-designed families at the space's largest resolution (or the one given)."""
    side = resolution or (224 if 224 in space.resolutions else max(space.resolutions))
    return {name: reference(name, side, space.classes) for name in FAMILIES}
