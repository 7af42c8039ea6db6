"""Tell what a validation found, as a table; exit status 1 if something stored is not what is recomputed."""

import argparse
from pathlib import Path

from retro.base import stage
from retro.base.artifacts import read_json
from retro.base.stage import UserError


def artifacts(path: Path) -> list[dict]:
    """What a report says of each artifact."""
    facts = read_json(path)
    if not isinstance(facts, dict) or not isinstance(facts.get("artifacts"), list):
        raise UserError(
            f"{path}: wanted a report of retro.validate.recompute. Delete it and run snakemake validate again."
        )
    return facts["artifacts"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", required=True, nargs="+", type=Path, help="reports of retro.validate.recompute")
    options = parser.parse_args()
    rows = [row for path in options.reports for row in artifacts(path)]
    width = max(len(row["artifact"]) for row in rows)
    for row in rows:
        state = "DIFFERS" if row["difference"] else "equal"
        print(f"{row['artifact']:{width}s}  {state:7s}  {row['recomputed']:40s} {row['seconds']:8.1f} s")
    wrong = [row for row in rows if row["difference"]]
    for row in wrong:
        print(f"\n{row['difference']}")
        for reason in row["reasons"]:
            print(f"  {reason}")
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(rows)} artifacts are not what is recomputed. Delete the first that differs and run "
            f"snakemake again: it makes what follows from it again, too."
        )
    print(f"{len(rows)} artifacts: what was recomputed equals what is stored, bit by bit.")


if __name__ == "__main__":
    stage.run(main)
