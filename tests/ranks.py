"""Two processes that train together, on this machine."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def start_ranks(code: str, *arguments: object) -> "list[subprocess.Popen[bytes]]":
    """Start two processes that run code, with the environment that torchrun would give them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return [subprocess.Popen(line, env={**common, "RANK": str(rank)}, cwd=REPOSITORY) for rank in range(2)]


def wait_for_ranks(ranks: "list[subprocess.Popen[bytes]]") -> None:
    """Wait until both have ended. If one fails, the other is killed, which may wait for it."""
    while any(rank.poll() is None for rank in ranks) and not any(rank.returncode for rank in ranks):
        time.sleep(0.05)
    for rank in ranks:
        rank.kill()
    assert [rank.wait() for rank in ranks] == [0, 0]
