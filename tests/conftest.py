import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from benchmarks.s3 import Server

# Tests of real deliveries are collected only if the variable names a folder of them.
REAL_DATA = os.environ.get("GEOKR_REAL_DATA")
collect_ignore_glob = [] if REAL_DATA else ["real/*"]

# The same examples in every run, and no deadline, because a slow machine is not a failure.
settings.register_profile("geokr", derandomize=True, deadline=None)
settings.load_profile("geokr")


def pytest_configure() -> None:
    # Tests started in the background may inherit ignored signals, and so would all processes that they start.
    heard = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    for number, handler in heard.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
    if REAL_DATA and not Path(REAL_DATA).is_dir():
        raise pytest.UsageError(f"GEOKR_REAL_DATA={REAL_DATA} is not a directory; unset it to leave those tests out")


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Unpack images from archives into a folder that is removed with the tests' other files."""
    os.environ["GEOKR_SCRATCH"] = str(tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(scope="session")
def s3_process() -> Iterator["Server"]:
    from benchmarks.s3 import s3_server

    with s3_server() as server:
        yield server


@pytest.fixture
def s3(s3_process: "Server", monkeypatch: pytest.MonkeyPatch) -> "Server":
    """An S3 server, named by the environment. All tests share its bucket."""
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    return s3_process


@pytest.fixture(scope="session")
def web_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from tests.web import web_server

    with web_server(tmp_path_factory.getbasetemp()) as address:
        yield address


@pytest.fixture
def served(web_process: str, tmp_path: Path) -> str:
    """The URL at which the test's directory is served over HTTP."""
    return f"{web_process}/{tmp_path.name}"
