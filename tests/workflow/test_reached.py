"""What stages really run is what their digests cover."""

from retro.base import provenance
from tests.workflow.test_rerun_code import STARTS


def outside(ran: dict[str, set[tuple[str, str]]]) -> dict[str, set[tuple[str, str]]]:
    """Of each stage: definitions of which code ran and that its digest does not cover."""
    found = {}
    for stage, definitions in ran.items():
        if stage in STARTS or not stage.startswith("retro.") or stage.startswith("retro.tools."):  # `make run` itself
            continue
        reached = provenance.package().reachable(stage)
        found[stage] = definitions - {(each.module.name, name) for each in reached for name in each.names}
    return {stage: missed for stage, missed in found.items() if missed}


def test_a_stage_runs_nothing_outside_what_its_digest_covers(finished):
    ran = finished.ran()
    assert len({stage for stage in ran if stage.startswith("retro.")}) >= 17
    assert sum(map(len, ran.values())) > 800
    assert outside(ran) == {}
