"""Write the recorded config, results/<dataset>/config.json, when preprocessing is complete.

It holds what Megatron-LM's preprocessing recorded (data paths, sequence length, samples, batch size, evaluation
interval and iterations, tokenizer, seed) and what that forgot: vocabulary size, EOD and pad ids, split rule,
encoder, index, neighbours, and the sha256 of every artifact's manifest.
"""

import argparse
import os
from pathlib import Path

from retro import errors
from retro.arguments import given
from retro.artifacts import read_manifest, sha256, write_json
from retro.errors import UserError

STAGE = "retro.record"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="the dataset section, as JSON")
    parser.add_argument("--manifests", required=True, nargs="+", type=Path, help="manifests of every artifact")
    parser.add_argument("--output", required=True, type=Path, help="config.json to write")
    options = parser.parse_args()
    settings, folder = options.settings, options.output.parent
    manifests = {os.path.relpath(path, folder): read_manifest(path) for path in options.manifests}
    for name, manifest in manifests.items():
        for made_from, wanted in manifest.facts["inputs"].items():
            path = manifest.folder / made_from
            if path.name == "manifest.json" and sha256(path) != wanted:
                raise UserError(f"{folder / name}: was made from another {path}. Run snakemake: it makes it again.")
    tokenizer = manifests.get("tokenizer/manifest.json")
    if tokenizer is None:
        raise UserError(f"--manifests: {', '.join(manifests)}; tokenizer/manifest.json is wanted, too. Run snakemake.")
    write_json(
        options.output,
        {
            "kind": "recorded config",
            "format": 1,
            **settings,
            "source_order": sorted(settings["sources"]),
            "tokenizer": {**settings["tokenizer"], **tokenizer.counts},
            "counts": {name: manifest.counts for name, manifest in manifests.items()},
            "manifests": {name: sha256(folder / name) for name in manifests},
        },
    )


if __name__ == "__main__":
    errors.run(main)
