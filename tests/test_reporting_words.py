"""Numbers are short, exact to four digits and never in a programmer's notation."""

import numpy as np
import pytest

from curate.reporting.words import alike, decimal, number, percent, plural, power, scientific


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (32592, "32,592"),
        (0.0123456, "0.01235"),
        (1234.5678, "1,235"),
        (0.000012, "1.2\N{MULTIPLICATION SIGN}10⁻⁵"),
        (1e-7, "10⁻⁷"),
        (-0.5, "\N{MINUS SIGN}0.5"),
        (0.0, "0"),
        (None, "\N{EN DASH}"),
        (float("nan"), "\N{EN DASH}"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_powers_of_ten_are_raised() -> None:
    assert (power(1e-4), power(1000.0), power(2e-4)) == ("10⁻⁴", "10³", number(2e-4))


def test_numbers_side_by_side_are_written_alike() -> None:
    small, large = np.array([0.00294, 4.3e-5, 0.0, np.nan]), np.array([0.25, 17.0])
    times = "\N{MULTIPLICATION SIGN}"
    assert [alike(small)(float(value)) for value in small] == [
        f"2.94{times}10⁻³",
        f"4.30{times}10⁻⁵",
        "0",
        "\N{EN DASH}",
    ]
    assert [alike(large)(float(value)) for value in large] == ["0.25", "17"]
    assert alike(np.array([np.nan]))(0.5) == "0.5"
    assert scientific(-1234.0) == f"\N{MINUS SIGN}1.23{times}10³"


def test_decimals_have_a_minus_sign() -> None:
    assert (decimal(0.125, 2), decimal(-1.0, 3), decimal(None, 2)) == ("0.12", "\N{MINUS SIGN}1.000", "\N{EN DASH}")


def test_shares_and_plurals() -> None:
    assert (percent(1, 8), percent(1, 0)) == ("12.5 %", "\N{EN DASH}")
    assert (plural(1, "patch", "patches"), plural(2, "patch", "patches"), plural(0, "pair")) == (
        "1 patch",
        "2 patches",
        "0 pairs",
    )
