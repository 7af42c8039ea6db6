"""The summary that a long test command ends with."""

TOLD: list[str] = []


def tell(line: str) -> None:
    """Add a line to the summary."""
    TOLD.append(line)
