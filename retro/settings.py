"""What every config section shares: frozen, unknown keys refused; and marks for what fields stand for."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of the config. Immutable; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def facts(self) -> dict:
        """Plain values, ready for JSON."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Names:
    """Marks a field whose text is a path, or a list of paths: `path: Annotated[str, Names("file")]`.

    Every field that can hold a path bears this mark: `retro.config_paths` finds them, and an archive takes along what
    they name. corpus: documents, files or folders. file, folder: read by a stage. model: a run of the config, or the
    path of a model.json or of its folder. preset: another config. results: where everything is made.
    """

    what: Literal["corpus", "file", "folder", "model", "preset", "results"]


@dataclass(frozen=True)
class Overrides:
    """Marks a field that overrides keys of another section: a mapping, validated when it is laid on that one."""

    section: type[BaseModel]
