"""Figure `cost`: where the time went, and how fast the models trained."""

from pathlib import Path
from statistics import median

from retro.evaluation.conditions import NONE, ON
from retro.report import palette, style
from retro.report.read import Run, Stage
from retro.report.words import duration, short


def speed(run: Run) -> tuple[float, float]:
    """A run's median tokens a second and share of the machine's matrix-product rate."""
    lines = run.training()
    return median(line["tokens_per_s"] for line in lines), median(line["mfu"] for line in lines)


def draw_cost(stages: list[Stage], runs: list[Run], folder: Path) -> None:
    """Left: wall time of each stage, jobs summed. Right: tokens a second of each run, with its MFU."""
    stages = sorted(stages, key=lambda stage: -stage.seconds)[:14]
    runs = [run for run in runs if run.training()]
    height = 1.1 + 0.3 * max(len(stages), len(runs), 3)
    ratios = {"width_ratios": [1.15, 1]}
    with style.figure(folder, "cost", height, ncols=2, gridspec_kw=ratios) as (_, (left, right)):
        if stages:
            seconds = [stage.seconds for stage in stages]
            left.barh(range(len(stages)), seconds, color=palette.SOURCES[1], height=0.7)
            for position, stage in enumerate(stages):
                jobs = f" · {stage.jobs} jobs" if stage.jobs > 1 else ""
                left.text(stage.seconds, position, f"  {duration(stage.seconds)}{jobs}", va="center", fontsize=8.5)
            left.set_yticks(range(len(stages)), [stage.name.replace("_", " ") for stage in stages])
            left.set_xlim(0, 1.45 * max(seconds))
            left.set(xlabel="seconds, jobs summed", title="Time of each stage")
            style.bars(left)
        else:
            style.nothing(left, "No benchmarks were recorded.")
        if not runs:
            style.nothing(right, "No metrics were logged.")
            return
        speeds = [speed(run) for run in runs]
        colours = [palette.colour(NONE if run.architecture == "gpt" else ON) for run in runs]
        right.barh(range(len(runs)), [rate for rate, _ in speeds], color=colours, height=0.7)
        for position, (rate, share) in enumerate(speeds):
            right.text(rate, position, f"  {short(rate)}/s · MFU {share:.0%}", va="center", fontsize=8.5)
        right.set_yticks(range(len(runs)), [run.name for run in runs])
        right.set_xlim(0, 1.6 * max(rate for rate, _ in speeds))
        right.xaxis.set_major_formatter(short)
        right.set(xlabel="tokens a second (median)", title="Speed of training")
        style.bars(right)
