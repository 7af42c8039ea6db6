"""One toy dataset for all tests that only read it."""

import pytest

from retro.dataset.dataset import Dataset
from tests.training.toy import make_dataset


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """Path of a toy dataset's config.json; do not change what lies beside it."""
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def dataset(config):
    return Dataset.open(config)
