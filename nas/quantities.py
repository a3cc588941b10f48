"""Quantities in print: latencies with as many digits as mean something, whether they are 0.1 ms or 300 ms."""

from __future__ import annotations

import math

_DIGITS, _DIGITS_OF_ERROR = 3, 2


def latency_text(latency_ms: float, error_ms: float | None = None, unit: str = " ms") -> str:
    """A latency in three significant digits, or as many as its error leaves meaning.

    Args:
        latency_ms: milliseconds.
        error_ms: one standard deviation, None or 0 where it is not known.
        unit: what follows the numbers.

    Returns:
        E.g. ``0.112 ms``, ``66.5 ± 3.9 ms``, ``123 ms``.
    """
    if not error_ms:
        return f"{latency_ms:.{_decimals(latency_ms, _DIGITS)}f}{unit}"
    decimals = max(_decimals(error_ms, _DIGITS_OF_ERROR), _decimals(latency_ms, _DIGITS_OF_ERROR))
    return f"{latency_ms:.{decimals}f} ± {error_ms:.{decimals}f}{unit}"


def signed(value: float, digits: int) -> str:
    """A number with its sign, a real minus, and no negative zero."""
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        text = "±" + text[1:]
    return text.replace("-", "−")


def _decimals(value: float, digits: int) -> int:
    """Decimals that show so many significant digits; none of a whole number of more digits."""
    if value == 0 or not math.isfinite(value):
        return 0
    # Of the number as it will be rounded: 9.996 has three digits as 10.0.
    return max(0, digits - 1 - int(f"{abs(value):.{digits - 1}e}".split("e")[1]))
