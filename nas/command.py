"""The start of every command: compose its configuration, run it, turn errors into a line and an exit code."""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TypeVar

import hydra
import optuna
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from nas.console import PrintableConsole, print_in_any_locale
from nas.disk import DISK_ERRORS, NO_TEMPORARY, cannot_write
from nas.ending import Ending
from nas.help import CONFIG_FOLDER, help_text
from nas.measuring.rounds import MeasurementError
from nas.overrides import literal, overrides_of
from nas.settings import ACCURACY_SCHEMAS, settings_of
from search_spaces.blocks import SQUARE, is_oblong
from search_spaces.errors import InputError, is_text, masked, printable, shorten

_Settings = TypeVar("_Settings")


def store_schemas(config_name: str, schema: type) -> None:
    """Tell Hydra what the configuration of a command is checked against, its choices of accuracy included."""
    store = ConfigStore.instance()
    store.store(name=f"{config_name}_schema", node=schema)
    for name, node in ACCURACY_SCHEMAS.items():
        store.store(group="accuracy", name=f"{name}_schema", node=node)


def command(
    config_name: str,
    schema: type[_Settings],
    main: Callable[[_Settings], None],
    positional: Sequence[str] = (),
) -> None:
    """Run a command: compose its config, hand it over, and turn errors into one line and an exit code.

    Args:
        config_name: YAML file in ``conf/``, without its ending.
        schema: dataclass the file is checked against; its defaults list names it ``<config_name>_schema``.
        main: what to do with the settings, an object of this dataclass.
        positional: keys whose values may stand alone on the command line, in this order.
    """
    print_in_any_locale()
    ending = Ending()
    errors = PrintableConsole(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    asks_how = bool({"--help", "-h"} & set(sys.argv[1:]))
    try:
        if asks_how:
            print(help_text(config_name, sys.argv[1:]), flush=True)
            return
        _check_folder()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        store_schemas(config_name, schema)
        # Hydra would print several lines and a hint; with this it raises, and we print one.
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        # A sweep's own folder holds nothing but Hydra's notes.
        with tempfile.TemporaryDirectory() as notes:
            words = overrides_of(config_name, schema, sys.argv[1:], positional)
            sys.argv[1:] = [f"hydra.sweep.dir={literal(notes)}", *words]
            if any(word.startswith(("--cfg", "--info")) for word in words):
                _show(config_name, schema, main)
            else:
                _compose_and_run(config_name, schema, main)
        if sys.stdout is not None:
            sys.stdout.flush()  # not at the interpreter's end, where nobody would be told in a line
    except (InputError, MeasurementError) as error:
        # What a board says is of any length and may hold escape sequences.
        errors.print(f"error: {shorten(str(error))}", style="red")
        sys.exit(2)
    except BrokenPipeError:
        # Who reads has gone, or has enough, as `head` has; the interpreter would complain at its end, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if asks_how:
            return
        errors.print("nobody reads the output any longer: the same command continues where this one stopped")
        sys.exit(141)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        errors.print(f"error: {_config_error(error)}", style="red")
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS and not error.filename and NO_TEMPORARY not in str(error):
            raise
        # Files of ours are named; what is left are the output, and files that libraries put aside.
        others = f"the standard output, or a temporary file in {os.environ.get('TMPDIR', '/tmp')}"  # noqa: S108
        errors.print(
            f"error: {masked(cannot_write(error, others, 'use' if error.filename else 'write'))}", style="red"
        )
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print(f"{ending.how}; the same command continues where this one stopped")
        sys.exit(ending.code)


def _check_folder() -> None:
    """Refuse to begin in a folder that was deleted under the shell, or whose name no page can hold.

    Raises:
        InputError: telling what to do.
    """
    try:
        here = Path.cwd()
    except OSError as error:
        raise InputError(
            f"the folder that this command was typed in cannot be used ({error.strerror}): change into "
            "another one"
        ) from None
    if not is_text(str(here)):
        raise InputError(f"this folder, {here}, has a name that is no text in UTF-8: rename it")


def _show(config_name: str, schema: type[_Settings], main: Callable[[_Settings], None]) -> None:
    """Print what Hydra prints of a configuration, without passwords."""
    with redirect_stdout(io.StringIO()) as shown:
        _compose_and_run(config_name, schema, main)
    for line in shown.getvalue().splitlines():
        print(printable(masked(line)))


def _compose_and_run(config_name: str, schema: type[_Settings], main: Callable[[_Settings], None]) -> None:
    # Hydra announces every exception of a job on several lines; errors meant for people go around it.
    failures: list[BaseException] = []

    def guarded(config: DictConfig) -> None:
        try:
            main(settings_of(config, schema))
        except (InputError, MeasurementError, OmegaConfBaseException, OSError, KeyboardInterrupt) as error:
            failures.append(error)

    hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=config_name)(guarded)()
    if failures:
        raise failures[0]


def _config_error(error: Exception) -> str:
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key} is not set: type {error.full_key}=VALUE; --help explains it"
    # Hydra's messages are clear but long: keep what was wrong and what there is instead.
    cause = error.__cause__ or error.__context__
    text = str(error)
    if cause is not None and str(cause) not in text:
        text += " " + str(cause)
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.strip()
        and not line.strip().startswith(
            ("full_key:", "object_type=", "reference_type=", "Config search path")
        )
    ]
    kept = " ".join(line for line in lines if not line.startswith(("provider=", "Did you mean")))
    if (value := re.search(r"resolutions?=\S* Value '([^']*)'", kept)) and is_oblong(value[1]):
        kept += f": {SQUARE}"
    return shorten(kept, 1_000)
