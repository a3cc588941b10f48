"""The one error users see."""

from __future__ import annotations

import re

MAX_MESSAGE = 300
# The password in a URL, up to the last @ of the word: it may contain one itself.
_PASSWORD = re.compile(r"(://[^\s/:@]*):[^\s]*@|([?&](?:password|passwd|sslpassword)=)[^&\s]*", re.IGNORECASE)


class InputError(ValueError):
    """Something given from outside is wrong. The message is one line: what, where, what to do.

    Commands print the message and exit with a code other than 0; everything else keeps its traceback.
    What a message quotes comes from outside too: it is made one printable line of bounded length, without
    passwords.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shorten(str(message)))


def masked(text: str) -> str:
    """A text in which no URL tells its password any longer."""
    return _PASSWORD.sub(lambda found: f"{found[1]}:***@" if found[1] else f"{found[2]}***", text)


def shorten(text: str, most: int = MAX_MESSAGE) -> str:
    """One printable line of at most ``most`` characters; of a longer one the middle is left out.

    Where it went wrong stands at the beginning of a message, what to do at its end.
    """
    text = text if len(text) <= 4 * most else f"{text[: 2 * most]} … {text[-2 * most :]}"
    line = masked(" ".join(text.split()))
    if not line.isprintable():
        # Escape sequences of terminals, among others.
        line = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode() for each in line
        )
    if len(line) <= most:
        return line
    end = most // 3
    return f"{line[: most - end - 3]} … {line[-end:]}"
