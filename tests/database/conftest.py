"""A small tokenized corpus, made once a test run."""

import pytest

from tests.database.stages import Corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Corpus:
    """Tokens and chunks of the sources `main` and `open`. Read it only."""
    return Corpus(tmp_path_factory.mktemp("corpus")).tokenize().chunk()
