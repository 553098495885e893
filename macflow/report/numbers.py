"""Write numbers for people: few digits, a real minus sign, thin spaces between thousands."""

from __future__ import annotations

from typing import Any

MINUS = "\u2212"
THIN_SPACE = "\u202f"
MISSING = "\u2013"


def number(value: float | None, digits: int = 3) -> str:
    """Return `value` with `digits` significant digits, whole numbers from 1000 on in full."""
    if value is None:
        return MISSING
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif float(value).is_integer() or size >= 10**digits:
        text = f"{value:,.0f}".replace(",", THIN_SPACE)
    else:
        decimals = max(digits - 1 - _exponent(size), 0)
        text = f"{value:.{decimals}f}"
    return text.replace("-", MINUS)


def fixed(value: float | None, decimals: int = 1) -> str:
    """Return `value` with a fixed count of decimals."""
    if value is None:
        return MISSING
    return f"{value:,.{decimals}f}".replace(",", THIN_SPACE).replace("-", MINUS)


def signed(value: float | None, decimals: int = 1) -> str:
    """Return `value` with its sign, a plus included."""
    if value is None:
        return MISSING
    return f"{value:+,.{decimals}f}".replace(",", THIN_SPACE).replace("-", MINUS)


def percent(value: float | None, decimals: int = 1) -> str:
    """Return the share `value` (0 to 1) in percent."""
    return MISSING if value is None else f"{value * 100:.{decimals}f}{THIN_SPACE}%"


def setting(value: Any) -> str:
    """Return a parameter's value as one reads it in `params.yaml`, nested values flattened."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case dict():
            return ", ".join(f"{key}: {setting(item)}" for key, item in value.items()) or "none"
        case list() | tuple():
            return ", ".join(setting(item) for item in value) or "none"
        case float() if not value.is_integer() or abs(value) >= 1e5:
            return f"{value:g}"
        case _:
            return str(value)


def _exponent(size: float) -> int:
    return int(f"{size:e}".split("e")[1])
