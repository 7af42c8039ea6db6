"""Stage: neighbours as a smaller database would give them (Shao et al. 2024).

Every database chunk is kept or not by a seeded hash of its id; of each chunk's candidates the first `saved` that
are kept are its neighbours. As long as enough candidates are kept, that is what searching the smaller database
gives, for the cost of one search. A chunk with too few has holes, −1, which the manifest counts.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from retro.base import stage
from retro.base.artifacts import read_manifest, write_array, write_manifest
from retro.base.hashing import mix
from retro.base.stage import UserError, given

STAGE = "retro.retrieval.subsample"


def kept(ids: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool: which database ids a database of this share holds. A smaller share of one seed is part of a larger."""
    drawn = mix(ids.astype(np.uint64) + mix(np.array([seed], np.uint64)))
    return (ids >= 0) & ((drawn >> np.uint64(11)) * 2.0**-53 < share)


def first_kept(
    ids: np.ndarray, scores: np.ndarray, share: float, seed: int, saved: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first `saved` kept neighbours: ids [C, saved], −1 for holes, and their scores, −∞ there."""
    keep = kept(ids, share, seed)
    order = np.argsort(~keep, axis=1, kind="stable")[:, :saved]
    holes = ~np.take_along_axis(keep, order, axis=1)
    found, near = (np.take_along_axis(np.asarray(x), order, axis=1) for x in (ids, scores))
    found[holes], near[holes] = -1, -np.inf
    return found, near


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="JSON: share, seed, saved")
    parser.add_argument("--candidates", required=True, type=Path, help="manifest of many neighbours of a split")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    options = parser.parse_args()
    manifest, wanted = read_manifest(options.candidates, "neighbours"), options.settings
    ids, scores = manifest.array("ids.npy"), manifest.array("scores.npy")
    if ids.shape[1] < wanted["saved"]:
        raise UserError(
            f"{options.candidates}: holds {ids.shape[1]} candidates a chunk, wanted at least {wanted['saved']}. Raise "
            f"experiments.candidates."
        )
    found = dict(zip(("ids", "scores"), first_kept(ids, scores, **wanted), strict=True))
    files = [options.output.parent / f"{name}.npy" for name in found]
    for path, array in zip(files, found.values(), strict=True):
        write_array(path, array)
    holes = found["ids"] < 0
    counts = {"chunks": len(ids), "holes": int(holes.sum()), "chunks_with_holes": int(holes.any(1).sum())}
    write_manifest(
        options.output,
        kind="neighbours",
        stage=STAGE,
        files=files,
        inputs=[options.candidates],
        settings={**manifest.settings, **wanted},
        counts=counts,
        seed=wanted["seed"],
    )
    print(f"{wanted['share']:g} of the database: {counts['holes']} holes → {options.output.parent}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
