"""Config sections of evaluation and generation."""

from typing import Literal

from pydantic import Field

from retro.base.names import HeldOut
from retro.base.stage import Settings
from retro.evaluation.conditions import Condition


class EvaluationSettings(Settings):
    """How bits per byte are measured and compared."""

    splits: list[HeldOut] = Field(["test"], min_length=1, description="Splits to evaluate.")
    stride: int = Field(
        0, ge=0, description="Tokens a window moves, a multiple of chunk_length; 0: half of seq_length."
    )
    batch_size: int = Field(8, gt=0, description="Windows a forward pass.")
    neighbours_used: int | None = Field(None, ge=0, description="Neighbours a chunk sees; default: as in training.")
    retrieved_chunks: int | None = Field(
        None, ge=1, description="Chunks each neighbour brings, at most as many as in training; default: as many."
    )
    in_context: float = Field(
        0.5, ge=0, lt=1, description="Share of a GPT's window that neighbours may fill (condition in-context)."
    )
    random_neighbours: bool = Field(True, description="Also evaluate with random neighbours, the control.")
    copy_baseline: bool = Field(
        True,
        description="Also mix the first RETRO run and its twin with a copier that is trained on nothing and reads the "
        "same neighbours: copying.csv and a section of the report. It needs a valid split, and test among the splits.",
    )
    bootstrap: int = Field(10_000, gt=0, description="Resamplings for the 95 % intervals.")

    bootstrap_unit: Literal["document", "group"] = Field(
        "document",
        description="What is drawn in resampling: documents, or groups (all pages of a country), whose documents are "
        "not independent; wider intervals.",
    )

    def compared_facts(self) -> dict:
        """What tables of all runs depend on: not whether there is one of copying, too."""
        return {key: value for key, value in self.facts().items() if key not in ("copy_baseline", "in_context")}

    def losses_facts(self, mode: str) -> dict:
        """What per-token losses under a condition depend on: not which splits, controls and resamplings are wanted."""
        condition, names = Condition.parse(mode), ["batch_size", "neighbours_used", "retrieved_chunks"]
        names += ["stride"] if not condition.in_window else ["in_context"] if condition.gpt else []
        return {key: value for key, value in self.facts().items() if key in names}


class GenerationSettings(Settings):
    """The sample in the report, written with live retrieval."""

    prompts: int = Field(3, ge=0, description="Held-out documents whose beginnings are continued.")
    prompt_tokens: int = Field(64, gt=0, description="Tokens taken from each.")
    new_tokens: int = Field(192, gt=0, description="Tokens written.")
    temperature: float = Field(0.0, ge=0, description="0: always the likeliest token.")
    top_p: float = Field(0.9, gt=0, le=1, description="Sample from the likeliest tokens that sum to this.")
