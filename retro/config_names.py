"""What sources, runs, retrievals and datasets may be called: their names become folders, columns and conditions.

Every word that the project takes for itself stands in `TAKEN`, once. What the data name, such as groups and sections,
is never looked up beside such a word, so it is free.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from retro.evaluation.conditions import BUILT_IN
from retro.naming import ALL, WORD
from retro.qa.settings import QuestionSettings

LONGEST = 64  # characters: file names hold several names and an ending, and may have 255 bytes
TUNINGS = get_args(QuestionSettings.model_fields["name"].annotation)


@dataclass(frozen=True)
class Taken:
    """Names that nothing at `key` of the config may have, and `why`. Capitals do not tell names apart."""

    key: str
    pattern: str
    why: str


TAKEN = (
    Taken("dataset.sources", ALL, "what rows over all sources are called"),
    Taken("dataset.sources", r".*\.\d+-of-\d+", "how the logs of a source's shards are called"),
    Taken("retrievals", "|".join([*BUILT_IN, "stored"]), "the name of a condition"),
    Taken("retrievals", "database-.*", "how conditions of smaller databases are called"),
    Taken("runs", r".*-s\d+", "how a run is called when it is trained with a seed"),
    Taken("runs", rf".*-s\d+-({'|'.join(TUNINGS)})", "how a run is called when it was fine-tuned"),
)


def wrong_names(config: Any) -> Iterator[str]:
    """A line for each name that the config may not give, without the file's name."""
    given = {"dataset.sources": config.dataset.sources, "runs": config.runs, "retrievals": config.retrievals}
    for key, names in {"dataset.name": [config.dataset.name], **given}.items():
        seen: dict[str, str] = {}
        for name in names:
            taken = next((each for each in TAKEN if each.key == key and _is(each.pattern, name)), None)
            twin = seen.setdefault(name.casefold(), name)
            if len(name) > LONGEST:
                yield f"{key}: found {name[:20]!r}… of {len(name)} characters, wanted at most {LONGEST}; shorten it"
            elif not re.fullmatch(WORD, name):
                yield f"{key}: found {name!r}, wanted letters, digits and . _ - only, a letter or digit first"
            elif taken is not None:
                yield f"{key}: found {name!r}, which is {taken.why}; choose another name"
            elif twin != name:
                yield (
                    f"{key}: found {twin!r} and {name!r}, which are one folder where capitals do not count; choose "
                    "another name for one"
                )


def _is(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, name, re.IGNORECASE) is not None
