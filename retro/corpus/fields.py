"""Whether the fields that the config names are in the records of a source."""

import difflib
import sys
from typing import Any

from retro.corpus.settings import SourceSettings
from retro.corpus.values import is_nothing, names
from retro.errors import UserError

EARLY = 1024  # records after which a field that none of them has is told of
THEN = {
    "id": "its number is its id",
    "group": "each is a group of its own",
    "title": "its id is its title",
}  # what a document is given that lacks a field


class NamedFields:
    """Counts the records that lack a field which `fields` or `keep` of a source names.

    Fields that the config does not name may be absent: `id` is then `<source>-<number>`, group and title the id.
    """

    def __init__(self, source: SourceSettings, name: str):
        self.name = name
        given = source.fields.model_fields_set
        self.named = {f"fields.{what}": getattr(source.fields, what) for what in THEN if what in given}
        self.wanted = {f"keep.{field}": field for field in source.keep}
        self.keep = source.keep
        keys = [*self.named, *self.wanted]
        self.examined, self.absent = dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
        self.found: dict[str, set[str]] = {field: set() for field in source.keep}  # values of `keep` that records have
        self.known: list[str] = []  # fields of the first record

    def count(self, key: str, value: Any, record: dict[str, Any]) -> None:
        """Take note of what a record has for the field that the config names in `key`, such as fields.group."""
        self.known = self.known or sorted(record)
        self.examined[key] += 1
        self.absent[key] += is_nothing(value)
        if self.absent[key] == self.examined[key] == EARLY:
            field = {**self.named, **self.wanted}[key]
            print(f"warning: source {self.name}: none of the first {EARLY:,} records has {field!r} ({key})",
                  file=sys.stderr, flush=True)  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What was counted, ready for JSON: what a shard tells the job that joins them."""
        found = {field: sorted(values) for field, values in self.found.items()}
        return {"examined": self.examined, "absent": self.absent, "found": found, "known": self.known}

    def add(self, facts: dict[str, Any]) -> None:
        """Add what another shard counted."""
        self.known = self.known or facts["known"]
        for key in self.examined:
            self.examined[key] += facts["examined"][key]
            self.absent[key] += facts["absent"][key]
        for field, values in facts["found"].items():
            self.found[field] |= set(values)

    def check(self) -> None:
        """Refuse a field that is named and in no record."""
        for key, field in {**self.named, **self.wanted}.items():
            if self.examined[key] and self.absent[key] == self.examined[key]:
                lower = {known.lower(): known for known in self.known}
                near = difflib.get_close_matches(field.lower(), lower, n=1)
                meant = f" Did you mean {lower[near[0]]!r}?" if near else ""
                raise UserError(
                    f"source {self.name}: {key} names the field {field!r}, which none of its "
                    f"{self.examined[key]} records has; the first has {names(self.known)}.{meant} Correct "
                    f"dataset.sources.{self.name}.{key}, or leave it out."
                )

    def counts(self) -> dict[str, dict[str, int]]:
        """For the manifest: records without each field that is named; nothing where none is."""
        fields = {**self.named, **self.wanted}
        return {"absent": {field: self.absent[key] for key, field in fields.items()}} if fields else {}

    def remarks(self) -> list[str]:
        """A line for each field that some records lack, and for values of `keep` that no record has."""
        told = []
        for key, field in {**self.wanted, **self.named}.items():
            if self.absent[key]:
                then = THEN.get(key.removeprefix("fields."), "they are left out")
                told.append(f"{field!r} ({key}) absent in {self.absent[key]} of {self.examined[key]} records: {then}")
        for field, values in self.keep.items():
            without = [value for value in values if value not in self.found[field]]
            if without:
                told.append(f"no record has {names(without)} in {field!r} (keep.{field})")
        return told
