"""Numbers as people read them."""

import pytest

from prune2deploy.report.numbers import count_text, milliseconds, percent_change, size_text


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999"), (1234, "1.23 k"), (25_557_032, "25.56 M"), (4_089_184_256, "4.09 G")],
)
def test_counts_have_a_unit(value, text):
    assert count_text(value) == text


def test_sizes_are_decimal():
    assert size_text(1_500_000) == "1.50 MB"
    assert size_text(999_999) == "1000.0 kB"


def test_change_is_relative_to_before():
    assert percent_change(200, 150) == "-25.0 %"
    assert percent_change(0, 1) == "unknown"


def test_a_latency_without_interval_says_so():
    assert milliseconds(1.23456, (1.2, 1.3)) == "1.235 ms [1.200, 1.300]"
    assert milliseconds(123.456, None) == "123.5 ms [no interval]"
    assert milliseconds(12345.6, None) == "12345.6 ms [no interval]"
    assert milliseconds(0.0789, (0.0788, 0.07904)) == "0.07890 ms [0.07880, 0.07904]"
    assert milliseconds(0.0, None) == "0.000 ms [no interval]"
    assert milliseconds(None, None) == "too few samples"
