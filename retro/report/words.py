"""Numbers as a reader wants them."""

from typing import Any


def percent(value: float) -> str:
    """A difference in percent with its sign; a real minus."""
    return f"{round(value, 1) + 0.0:+.1f} %".replace("-", "−").replace("+0.0", "±0.0")


def interval(row: dict[str, Any]) -> str:
    """The 95 % interval of a comparison, or nothing where there is none."""
    if row["low"] is None:
        return ""
    return f"({row['low']:+.1f} … {row['high']:+.1f})".replace("-", "−")


def short(value: float, _: int = 0) -> str:
    """A number, short: 600k, 1.2M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
