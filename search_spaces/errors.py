"""The one error users see."""

from __future__ import annotations

MAX_MESSAGE = 300


class InputError(ValueError):
    """Something given from outside is wrong. The message is one line: what, where, what to do.

    Commands print the message and exit with a code other than 0; everything else keeps its traceback.
    What a message quotes comes from outside too: it is made one printable line of bounded length.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shorten(str(message)))


def shorten(text: str, most: int = MAX_MESSAGE) -> str:
    """One printable line of at most ``most`` characters; of a longer one the middle is left out.

    Where it went wrong stands at the beginning of a message, what to do at its end.
    """
    text = text if len(text) <= 4 * most else f"{text[: 2 * most]} … {text[-2 * most :]}"
    line = " ".join(text.split())
    if not line.isprintable():
        # Escape sequences of terminals, among others.
        line = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode() for each in line
        )
    if len(line) <= most:
        return line
    end = most // 3
    return f"{line[: most - end - 3]} … {line[-end:]}"
