"""What decides a training run's result, and in which part two runs differ."""

import hashlib
from typing import Any

from retro.artifacts import canonical

# Keys of the run that say when things are shown or saved, what it is called, or how it is cut over processes: they
# change no weight, but for the rounding of sums that other numbers of processes take in another order.
WITHOUT_EFFECT = {
    "name": None,
    "twin": None,
    "from": None,  # the weights count, not where they lie
    "train": {
        "checkpoint_interval": None,
        "checkpoint_minutes": None,
        "exit_before": None,
        "exit_minutes": None,
        "log_interval": None,
        "log_norms": None,
        "parallel": None,
        "recompute": None,
    },
}


def facts(
    config: str,
    run: dict[str, Any],
    code: str,
    versions: dict[str, str],
    place: str,
    initial: str | None = None,
) -> dict[str, Any]:
    """The parts: sha256 of the recorded config, run settings, digest of the code, versions, device, and sha256 of
    the weights it begins with."""
    return {
        "recorded config": config,
        "run": _without(run, WITHOUT_EFFECT),
        "code": code,
        "versions": versions,
        "place": place,
        "initial weights": initial,
    }


def name_of(parts: dict[str, Any]) -> str:
    """Sixteen hex digits that stand for the parts."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What `new` has otherwise than `old`, in words."""
    before, now = _flat(old), _flat(new)
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    shown = [f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in changed[:4]]
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return ("; ".join(shown) + more) or "not readable"


def _without(value: dict[str, Any], dropped: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without(item, dropped[key]) if dropped.get(key) else item
        for key, item in value.items()
        if key not in dropped or dropped[key]
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"
