"""Config section of `snakemake validate`."""

from pydantic import Field

from retro.base.stage import Settings


class ValidationSettings(Settings):
    """How much of what preprocessing stored `snakemake validate` recomputes."""

    fraction: float = Field(
        0.05, gt=0, le=1, description="Share of the blocks of every artifact; of each at least one block."
    )
    seed: int = Field(1, ge=0, description="Decides which blocks: another seed, other blocks.")
