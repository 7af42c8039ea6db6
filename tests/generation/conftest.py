import pytest

from tests.evaluation.built import build_dataset, write_run


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A small preprocessed dataset with two untrained runs."""
    found = build_dataset(tmp_path_factory.mktemp("evaluation") / "words")
    for name in ("gpt-s1", "retro-s1"):
        write_run(found, name)
    return found
