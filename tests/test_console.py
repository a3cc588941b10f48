"""What commands print, on terminals of any width."""

import io

import pytest
from rich.console import Console

from nas import console
from nas.latency.validation import FAMILY_COLUMNS

ROWS = [
    ["mobilenet_v3_large_minimalistic", "72.3", "3.92", "209", "12.32", "13.1", "12.9"],
    ["mobilenet_v1", "70.6", "4.23", "569", "21.4", "22.0", "21.2"],
]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_word_of_a_table_is_broken(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = Console(width=width, record=True, highlight=False, markup=False, force_terminal=False)
    monkeypatch.setattr(console, "console", printed)
    console.print_columns("the MobileNets on a processor", FAMILY_COLUMNS, ROWS)
    text = printed.export_text()
    assert all(len(line) <= width for line in text.splitlines())
    cells = [cell for row in (FAMILY_COLUMNS[1:], *ROWS) for cell in row]
    assert {word for cell in cells for word in cell.split()} <= set(
        text.replace(",", " ").replace(":", " ").split()
    )
    # Wide terminals have one line a row.
    assert (width < 140) or sum("mobilenet_v1" in line and "21.2" in line for line in text.splitlines()) == 1


def test_names_of_others_move_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a\x1b[2J\x1b]0;title\x07\u202eb\x9b31m [/red] :smile:"
    shown = io.StringIO()
    monkeypatch.setattr(console.console, "_file", shown)
    console.warn(name)
    console.print_summary(name, {name: name}, name)
    console.print_columns(name, [name], [[name]])
    with console.progress_bars() as bars:
        bars.add_task(name)
    text = shown.getvalue()
    assert not {*text} & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert r"a\x1b[2J\x1b]0;title\x07\u202eb\x9b31m [/red] :smile:" in text
