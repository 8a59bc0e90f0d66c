import os
from pathlib import Path

import pytest
from hypothesis import settings

# Tests of real deliveries are collected only where the variable names a folder of them.
REAL_DATA = os.environ.get("GEOKR_REAL_DATA")
collect_ignore_glob = [] if REAL_DATA else ["real/*"]

# The same examples in every run; no deadline, since a busy machine is not a wrong answer.
settings.register_profile("geokr", derandomize=True, deadline=None)
settings.load_profile("geokr")


def pytest_configure() -> None:
    if REAL_DATA and not Path(REAL_DATA).is_dir():
        raise pytest.UsageError(f"GEOKR_REAL_DATA={REAL_DATA} is not a directory; unset it to leave those tests out")


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Copies of images in archives do not outlive the tests."""
    os.environ["GEOKR_SCRATCH"] = str(tmp_path_factory.mktemp("unpacked"))
