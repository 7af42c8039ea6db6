"""What every config section shares: frozen, unknown keys refused."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of the config. Immutable; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def facts(self) -> dict:
        """Plain values, ready for JSON."""
        return self.model_dump(mode="json")
