import math

import pytest

from nas.quantities import latency_text


@pytest.mark.parametrize(
    ("latency_ms", "error_ms", "text"),
    [
        (0.1123, None, "0.112 ms"),
        (0.1123, 0.0021, "0.1123 ± 0.0021 ms"),
        (0.00567, None, "0.00567 ms"),
        (8.58, 0.17, "8.58 ± 0.17 ms"),
        (9.996, None, "10.0 ms"),
        (66.53, 3.86, "66.5 ± 3.9 ms"),
        (123.37, None, "123 ms"),
        (123.37, 7.16, "123.4 ± 7.2 ms"),
        (210.6, 12.3, "211 ± 12 ms"),
        (1234.5, 96.0, "1234 ± 96 ms"),
        (20.0, None, "20.0 ms"),
        (8.58, 0.0017, "8.5800 ± 0.0017 ms"),
        # An error larger than the latency does not hide it.
        (0.11, 25.0, "0.11 ± 25.00 ms"),
        (5.0, 0.0, "5.00 ms"),
        (0.0, None, "0 ms"),
        (math.inf, None, "inf ms"),
    ],
)
def test_latencies_have_significant_digits(latency_ms: float, error_ms: float | None, text: str) -> None:
    assert latency_text(latency_ms, error_ms) == text
    assert latency_text(latency_ms, error_ms, "") == text.removesuffix(" ms")
