"""Numbers are short, exact to four digits and never in a programmer's notation."""

import pytest

from curate.reporting.words import decimal, number, percent, plural, power, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (32592, "32,592"),
        (0.0123456, "0.01235"),
        (1234.5678, "1,235"),
        (0.000012, "1.2 \N{MULTIPLICATION SIGN} 10⁻⁵"),
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


def test_decimals_have_a_minus_sign() -> None:
    assert (decimal(0.125, 2), decimal(-1.0, 3), decimal(None, 2)) == ("0.12", "\N{MINUS SIGN}1.000", "\N{EN DASH}")


def test_shares_and_plurals() -> None:
    assert (percent(1, 8), percent(1, 0)) == ("12.5 %", "\N{EN DASH}")
    assert (plural(1, "patch", "patches"), plural(2, "patch", "patches"), plural(0, "pair")) == (
        "1 patch",
        "2 patches",
        "0 pairs",
    )


def test_long_names_lose_their_middle() -> None:
    assert short("abcdefghij", 10) == "abcdefghij"
    assert short("abcdefghijk", 5) == "ab…jk"
    assert short("a\nb\x1b", 20) == "a\\nb\\x1b"
