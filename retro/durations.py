"""How long something takes, in words."""


def duration(seconds: float) -> str:
    """Seconds for a reader: 8 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 20 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
