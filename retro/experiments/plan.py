"""Which conditions each experiment measures, beside those of every evaluation. Imported by the Snakefile only."""

from retro.experiments.settings import ExperimentSettings

CONTROLS = ("on+neighbour", "on+continuation", "shuffled", "random")


def fraction_name(share: float, seed: int) -> str:
    """The condition of a smaller database: `database-0.05-s1`."""
    return f"database-{share:g}-s{seed}"


def fraction_of(name: str) -> tuple[float, int] | None:
    """Share and seed of such a condition, or None."""
    parts = name.split("-")
    return (float(parts[1]), int(parts[2][1:])) if parts[0] == "database" and len(parts) == 3 else None


def conditions(name: str, settings: ExperimentSettings, retrievals: list[str], used: int, saved: int) -> list[str]:
    """Names of the conditions of an experiment for a run trained with `used` of `saved` neighbours; `on` and `off` are
    always measured.
    """
    if name == "neighbours":
        return [f"on+k{k}" for k in settings.k if k not in (0, used) and k <= saved]
    if name == "database":
        return [fraction_name(share, seed) for share in settings.fractions for seed in settings.fraction_seeds]
    if name == "controls":
        return list(CONTROLS)
    return list(retrievals) if name == "retrievers" else []
