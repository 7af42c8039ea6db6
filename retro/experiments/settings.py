"""Config section of the experiments."""

from typing import Literal

from pydantic import Field, field_validator

from retro.base.stage import Settings
from retro.experiments.catalogue import CATALOGUE, Offered

Name = Literal[*CATALOGUE]  # type: ignore[valid-type]
ONE_RUN = ", ".join(name for name, experiment in CATALOGUE.items() if experiment.one_run)


class ExperimentSettings(Settings):
    """What `snakemake experiments` measures, on models that the config trains anyway."""

    names: list[Name] = Field(
        [name for name, experiment in CATALOGUE.items() if experiment.usual],
        description="Experiments: docs/evaluation.md says what each asks. Those left out by default need other runs.",
    )
    of: str | None = Field(
        None, description=f"RETRO run that some experiments measure ({ONE_RUN}); default: the first."
    )
    k: list[int] = Field(
        [0, 1, 2, 5, 10, 20],
        min_length=1,
        description="Neighbours a chunk is shown at evaluation; the default's, as far as neighbours.saved has them.",
    )
    fractions: list[float] = Field(
        [0.01, 0.05, 0.2, 0.5], description="Shares of the database's chunks that are kept, below 1; 1 is always shown."
    )
    fraction_seeds: list[int] = Field([1, 2, 3], min_length=1, description="Each share is drawn once for each seed.")
    baselines: list[Literal["in-context", "first-in-context", "knn"]] = Field(
        ["in-context", "first-in-context", "knn"],
        description="Other ways to read neighbours that `copying` compares. knn, a kNN-LM, keeps the state of every "
        "token of the database in memory and searches them for every token that is evaluated.",
    )
    candidates: int = Field(
        1000, gt=0, le=1000, description="Neighbours searched once, of which a smaller database keeps its share."
    )

    def offered(self, retrievals: list[str], used: int, saved: int, fit: int = 0, first_fits: bool = False) -> Offered:
        """What the conditions are made of, for a run trained with `used` of `saved` neighbours, of which `fit` into its
        twin's window and, if `first_fits`, one into its own.
        """
        drawn = (self.k, self.fractions, self.fraction_seeds)
        return Offered(*drawn, retrievals, used, saved, fit, first_fits, self.baselines)

    @field_validator("fractions")
    @classmethod
    def _shares(cls, fractions: list[float]) -> list[float]:
        if not all(0 < share < 1 for share in fractions):
            raise ValueError("wanted shares above 0 and below 1")
        return fractions

    @field_validator("k")
    @classmethod
    def _counts(cls, counts: list[int]) -> list[int]:
        if min(counts) < 0:
            raise ValueError("wanted numbers of neighbours from 0 on")
        return counts
