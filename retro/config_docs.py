"""Write config/README.md and config/schema.json from the settings' own descriptions: `python -m retro.config_docs`."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from retro.config import PRESETS, Config
from retro.refusals import settings_in

FOLDER = PRESETS.parent
INTRODUCTION = """# Configuration

Made by `python -m retro.config_docs` from the settings' own descriptions; do not edit.

A config file is YAML. It may name a `preset`, whose values it overrides key by key. Unknown keys are refused.
`config.yaml` is the default; another file is chosen by `make run CONFIG=config/tiny.yaml` or
`snakemake --configfile config/tiny.yaml`.

| file | what it runs |
|---|---|
"""


def readme() -> str:
    """The text of config/README.md."""
    lines = [INTRODUCTION.rstrip("\n")]
    for path in sorted(FOLDER.glob("*.yaml")) + sorted(PRESETS.glob("*.yaml")):
        lines.append(f"| {path.relative_to(FOLDER)} | {_first_comment(path)} |")
    lines += ["", "## Keys", "", "Changing a key makes again what depends on it, and nothing else.", ""]
    _section(Config, "", lines)
    return "\n".join(lines) + "\n"


def _first_comment(path: Path) -> str:
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
    return " ".join(words)


def _section(model: type[BaseModel], prefix: str, lines: list[str]) -> None:
    """A table of a section's own keys, then one for each section inside it."""
    inner = []
    assert model.__doc__ is not None
    lines += [f"### `{prefix or 'top level'}`", "", model.__doc__.strip().splitlines()[0], ""]
    lines += ["| key | default | meaning |", "|---|---|---|"]
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        key = f"{prefix}.{name}" if prefix else name
        inside = settings_in(field.annotation)
        if inside is not None:
            path = f"{key}.<name>" if "dict" in str(field.annotation) else key
            inner.append((inside, path))
        default = "see below" if inside is not None else _default(field)
        text = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {default} | {text} |")
    lines.append("")
    for inside, path in inner:
        _section(inside, path, lines)


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**required**"
    if value is None:
        return "none"
    return f"`{json.dumps(value)}`".replace("|", "\\|")


def schema() -> str:
    """The text of config/schema.json, for editors that complete and check YAML."""
    return json.dumps(Config.model_json_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    (FOLDER / "README.md").write_text(readme(), encoding="utf-8")
    (FOLDER / "schema.json").write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
