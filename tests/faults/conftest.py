"""The finished tiny pipeline, and the summary that `make test-faults` ends with."""

from tests.told import TOLD
from tests.workflow.conftest import finished  # noqa: F401

# What a run must give again, byte for byte.
BYTES = [
    "tokenizer/tokenizer.json",
    "tokens/tiny/tokens.bin",
    "chunks/tiny/chunks.npy",
    "embeddings/tiny/embeddings.npy",
    "index/index.faiss",
    *(f"neighbours/{split}/ids.npy" for split in ["train", "valid", "test"]),
    "runs/gpt-s1/model.safetensors",
    "runs/retro-s1/model.safetensors",
    "runs/retro-s1/evaluation/test/on/losses.npy",
    "comparison.csv",
]


def differing(project, undisturbed) -> list[str]:
    """Files whose bytes are not those of the undisturbed run."""
    return [name for name in BYTES if project.results(name).read_bytes() != undisturbed.results(name).read_bytes()]


def go_on(project, *targets: str):
    """What a user does after a fault: run again."""
    return project.run("python", "-m", "retro.tools.run", "--config", "config/tiny.yaml", "--cores", "2", *targets)


def pytest_terminal_summary(terminalreporter):
    if TOLD:
        terminalreporter.section("faults injected, and what was lost")
        for line in TOLD:
            terminalreporter.write_line(line)
