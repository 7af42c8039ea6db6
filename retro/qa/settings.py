"""Config section of question answering."""

from typing import Annotated, Literal

from pydantic import Field

from retro.base.names import Split
from retro.base.stage import Names, Settings


class QuestionSettings(Settings):
    """Questions, how their neighbours are found, and how a model is fine-tuned to answer them."""

    name: Literal["qa", "instruct"] = Field(
        "qa", description="What the fine-tuned models are called, `<run>-<name>`, the tables and the report's section."
    )
    questions: Annotated[str | None, Names("file")] = Field(
        None, description="JSON lines: question, answers, and if known id, group, doc_id, contexts. None: no questions."
    )
    instructions: Annotated[list[str], Names("file")] = Field(
        [], description="Files to fine-tune on: of questions, or of instruction, input and output."
    )
    splits: list[Split] = Field(
        ["test"], min_length=1, description="Splits whose questions are answered; none are fine-tuned on."
    )
    neighbours_used: int = Field(3, gt=0, description="Neighbours a question sees.")
    candidates: int = Field(400, gt=0, description="Chunks found for a question, before titles reorder them.")
    title_weight: float = Field(
        1.0, ge=0, description="What the similarity of question and page title adds to a chunk's own."
    )
    answer_tokens: int = Field(24, gt=0, description="Tokens of an answer at most.")
    shots: int = Field(
        0, ge=0, description="Questions of the training split that models as trained are shown with their answers."
    )
    examples: int = Field(4000, gt=0, description="Examples fine-tuned on, in all, with repetition.")
    batch_size: int = Field(16, gt=0, description="Examples an optimizer step.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate of fine-tuning.")
    warmup_samples: int = Field(300, ge=0, description="Examples of linear warm-up; then cosine down to a tenth.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's, on matrices only.")
    neighbour_dropout: float = Field(
        0.1, ge=0, le=1, description="Chance that an example sees no neighbours; 1: retrieval off."
    )
    checkpoint_interval: int = Field(50, gt=0, description="Steps between checkpoints of fine-tuning.")
    bootstrap: int = Field(10_000, gt=0, description="Resamplings of groups for the 95 % intervals.")

    def finetune_facts(self) -> dict:
        """What fine-tuned weights depend on: not which splits are answered and how they are scored."""
        return {
            key: value
            for key, value in self.facts().items()
            if key not in ("splits", "bootstrap", "questions", "shots")
        }

    def answer_facts(self) -> dict:
        """What answers depend on."""
        keys = ("splits", "neighbours_used", "candidates", "title_weight", "answer_tokens", "shots", "batch_size")
        return {key: value for key, value in self.facts().items() if key in keys}
