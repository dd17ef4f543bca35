"""An experiment of the counting environment."""

import pytest
from support import make_config

from steve.storage.folders import Folders


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path / "output", model=True)


@pytest.fixture
def folders(config):
    return Folders.of(config, "first")
