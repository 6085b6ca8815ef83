"""Numbers and names as people read them."""

import math
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["NONE", "TIMES", "alike", "decimal", "number", "percent", "plural", "power", "scientific", "slug"]

NONE = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"

_MINUS = "\N{MINUS SIGN}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DIGITS = 4  # of a number that is not whole


def number(value: float | None) -> str:
    """`32,592`, `0.0123`, 0.000012 as a multiple of a power of ten; a dash for none."""
    if value is None or math.isnan(value):
        return NONE
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", _MINUS)
    if 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.{_DIGITS}g}" if abs(value) < 1000 else f"{value:,.0f}"
        return text.replace("-", _MINUS)
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", _MINUS)
    of_ten = power(10.0 ** int(exponent))
    return of_ten if mantissa == "1" else f"{mantissa}{TIMES}{of_ten}"


def power(value: float) -> str:
    """A power of ten as `10⁻³`; any other number as `number` writes it."""
    exponent = round(math.log10(value))
    return f"10{str(exponent).translate(_RAISED)}" if math.isclose(value, 10.0**exponent) else number(value)


def scientific(value: float | None) -> str:
    """Three digits and a power of ten, however large the number: 4.30 times 10⁻⁵; a dash for none."""
    if not value or math.isnan(value):
        return number(value)
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.replace('-', _MINUS)}{TIMES}{power(10.0 ** int(exponent))}"


def alike(values: npt.NDArray[np.float64]) -> Callable[[float | None], str]:
    """How to write these numbers so that they compare at sight: each with a power of ten if small ones are among them.

    Small are those below a thousandth, where one in a hundred of all is: they could not be told apart as decimals.
    """
    there = np.abs(values[np.isfinite(values) & (values != 0)])
    return scientific if len(there) and np.percentile(there, 1) < 1e-3 else number


def decimal(value: float | None, digits: int) -> str:
    """`0.12` with so many digits after the point, a minus sign and not a hyphen before; a dash for none."""
    return NONE if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", _MINUS)


def percent(part: float, whole: float) -> str:
    """`12.3 %` of a whole; a dash of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else NONE


def plural(count: int, one: str, more: str | None = None) -> str:
    """`1 patch`, `2 patches`."""
    return f"{number(count)} {one if count == 1 else more or one + 's'}"


def slug(text: str) -> str:
    """`text` as a part of a file's name or of an identifier: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "unnamed"
