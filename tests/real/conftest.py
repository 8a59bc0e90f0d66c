"""Real deliveries, Landsat and land cover: tested where GEOKR_REAL_DATA names a folder of them."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real() -> Path:
    return Path(os.environ["GEOKR_REAL_DATA"])
