"""The cluster files: rendered, validated, and what they start is started here, on 127.0.0.1, and builds a block."""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncssh
import dask_kubernetes
import jsonschema
import psutil
import pytest
import yaml
from dask.distributed import Client

from geokr.dataset import contents, layout, store
from pipeline.plan import tile_grid
from pipeline.tasks.tiles import TileJob, build_tiles
from tests.build.conftest import Built

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "workflows"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
}
UNLIMITED = "365 days"
"""How long a client waits for a scheduler: tests watch the processes, and Dask's 30 s may be too few."""


def script(name: str) -> ModuleType:
    """A file of workflows/, imported."""
    spec = importlib.util.spec_from_file_location(name, WORKFLOWS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def connected(address: str, check: Callable[[], object]) -> Iterator[Client]:
    """A client of a scheduler with its first worker. check: fails if one of their processes has ended."""
    with Client(address, timeout=UNLIMITED) as client:
        while not client.nthreads():
            check()
            time.sleep(0.1)
        yield client


def builds_a_block(built: Built, client: Client, place: Path, check: Callable[[], object]) -> None:
    """A worker of the cluster writes one block, byte for byte the one that is known. check: as in `connected`."""
    entry = built.entries[0]
    grid = tile_grid(entry, built.config.grid)
    assert grid is not None
    root = str(place / "tiles.zarr")
    known = store.open_scene(str(built.dataset / layout.TILES), entry.scene.id)
    given = {
        "shape": (grid.rows, grid.cols),
        "bands": len(entry.scene.bands),
        "tile": grid.tile,
        "block": grid.block,
    }
    store.create_tiles(root, entry.scene.id, **given, dtype="uint8", attributes=dict(known.attrs))
    i, j = next(iter(sorted(contents.list_chunks(known, "image"))))
    job = TileJob(root, entry, built.config.tiles, grid, i, j)
    future = client.submit(build_tiles, job, pure=False)
    while not future.done():
        check()
        time.sleep(0.1)
    assert future.result().accepted > 0
    shard = Path(entry.scene.id, "image", "c", str(i), str(j), "0", "0", "0")
    assert (Path(root) / shard).read_bytes() == (built.dataset / layout.TILES / shard).read_bytes()


@contextmanager
def running(command: list[str], said: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command and what it starts, ended at the end. said: file of what it says, besides a pipe in the options."""
    with said.open("w") as file:
        options = {"env": ENVIRONMENT, "stdout": file, "stderr": file, **options}
        process = subprocess.Popen(command, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate()


def ended(pid: int) -> bool:
    """Whether a process has ended, whoever started it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def check_alive(said: Path, *pids: int) -> None:
    """Fail with what the processes said if one has ended."""
    assert not any(map(ended, pids)), said.read_text()


def listening(client: Client) -> dict[int, str]:
    """Addresses on which the one worker of a cluster listens, by their ports."""

    def ports() -> dict[int, str]:
        found = psutil.Process().net_connections("tcp4")
        return {place.laddr.port: place.laddr.ip for place in found if place.status == psutil.CONN_LISTEN}

    (found,) = client.run(ports).values()
    return dict(found)


# --- SLURM


def test_a_slurm_job_says_what_it_takes() -> None:
    command = [sys.executable, str(WORKFLOWS / "slurm.py"), "--print", "--queue", "cpu", "--account", "project"]
    more = ["--memory", "2GiB", "--walltime", "01:30:00", "--directive=--exclusive", "--setup", "module load gdal"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    wanted = ["-J geokr", "-p cpu", "-A project", "-n 1", "--cpus-per-task=1", "--mem=2G", "-t 01:30:00", "--exclusive"]
    assert {f"#SBATCH {line}" for line in wanted} <= {*lines}
    assert "module load gdal" in lines
    (worker,) = [line for line in lines if "dask worker" in line or "dask_worker" in line]
    assert "tcp://127.0.0.1:" in worker
    assert "--nthreads 1" in worker
    assert "--death-timeout 120" in worker
    assert "--host 127.0.0.1" in worker
    shared = subprocess.run([*command, "--interface", "lo"], capture_output=True, text=True, check=True)
    (worker,) = [line for line in shared.stdout.splitlines() if "dask worker" in line or "dask_worker" in line]
    assert "--interface lo" in worker  # which says where to listen
    assert "--host" not in worker


def test_an_unknown_network_interface_is_told_in_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, str(WORKFLOWS / "slurm.py"), "--interface", "ib99"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "'ib99' is not a valid network interface" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_slurm_job_builds(built: Built, tmp_path: Path) -> None:
    """SLURM's commands are played by two that start the job's script here, and end it."""
    (tmp_path / "bin").mkdir()
    pids, said = tmp_path / "pids", tmp_path / "said"
    pids.touch()
    commands = {
        # SLURM keeps the script; who submits deletes it.
        "sbatch": f'cp "$1" job; setsid sh job >>{said} 2>&1 & echo $! >> {pids}; echo Submitted batch job $!',
        "scancel": "",
    }
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), ENVIRONMENT["PATH"]])
    command = [sys.executable, str(WORKFLOWS / "slurm.py"), "--jobs", "1", "--memory", "2GiB"]
    environment = ENVIRONMENT | {"PATH": path}

    def jobs() -> list[int]:
        return list(map(int, pids.read_text().split()))

    try:
        with running(command, said, env=environment, cwd=tmp_path, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("scheduler: ").strip()
            assert address.startswith("tcp://127.0.0.1:"), said.read_text()
            assert process.stdout.readline().startswith("dashboard: http://127.0.0.1:")

            def check() -> None:
                check_alive(said, process.pid, *jobs())

            with connected(address, check) as client:
                builds_a_block(built, client, tmp_path, check)
                assert set(listening(client).values()) == {"127.0.0.1"}
    finally:
        for pid in jobs():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


# --- Kubernetes


def strict(schema: Any) -> Any:
    """A schema that knows no field but those it names, as the API server drops or refuses the others."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict) and "type" in found:
        found.setdefault("additionalProperties", False)
    return found


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """What the operator's resource definition says of a DaskCluster."""
    operator = Path(dask_kubernetes.__file__).parent / "operator/deployment/helm/dask-kubernetes-operator"
    file = operator / "crds" / "daskcluster.yaml"
    (version,) = yaml.safe_load(file.read_text())["spec"]["versions"]
    found = strict(version["schema"]["openAPIV3Schema"])
    found["properties"] |= {name: {} for name in ("apiVersion", "kind", "metadata")}
    return dict(found)


def resource() -> dict[str, Any]:
    return dict(yaml.safe_load((WORKFLOWS / "kubernetes.yaml").read_text()))


def test_the_kubernetes_resource_is_what_the_operator_takes(schema: dict[str, Any]) -> None:
    jsonschema.validate(resource(), schema)
    wrong = resource()
    wrong["spec"]["worker"]["spec"]["containers"][0]["ressources"] = {}
    with pytest.raises(jsonschema.ValidationError, match="ressources"):
        jsonschema.validate(wrong, schema)


def test_the_kubernetes_commands_build(built: Built, tmp_path: Path) -> None:
    spec = resource()["spec"]
    (scheduler,), (worker,) = (spec[part]["spec"]["containers"] for part in ("scheduler", "worker"))
    ports = {port["name"]: port["containerPort"] for port in scheduler["ports"]}
    assert ports == {port["targetPort"]: port["port"] for port in spec["scheduler"]["service"]["ports"]}
    assert (ports["tcp-comm"], ports["http-dashboard"]) == (8786, 8787)  # Dask's own, which the arguments leave alone
    limit = worker["args"][worker["args"].index("--memory-limit") + 1]
    assert limit == worker["resources"]["limits"]["memory"] + "B"
    assert worker["resources"]["requests"]["memory"] == worker["resources"]["limits"]["memory"]
    # As in a pod, but on this host's loopback alone and on ports that are free.
    port = free_port()
    here = [argument.replace("0.0.0.0", "127.0.0.1") for argument in scheduler["args"]]
    address = f"tcp://127.0.0.1:{port}"
    arguments = [argument.replace("$(DASK_WORKER_NAME)", "geokr-worker-1") for argument in worker["args"]]
    said, environment = tmp_path / "said", ENVIRONMENT | {"DASK_SCHEDULER_ADDRESS": address}
    with running([*here, "--port", str(port), "--dashboard-address", "127.0.0.1:0"], said, cwd=tmp_path) as scheduling:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            check_alive(said, scheduling.pid)
            time.sleep(0.1)
        pod_said = tmp_path / "pod-said"
        with running(arguments, pod_said, cwd=tmp_path, env=environment) as pod:

            def check() -> None:
                check_alive(said, scheduling.pid)
                check_alive(pod_said, pod.pid)

            with connected(address, check) as client:
                builds_a_block(built, client, tmp_path, check)
                (found,) = client.scheduler_info()["workers"].values()
                assert (found["name"], found["nthreads"], found["memory_limit"]) == ("geokr-worker-1", 1, 3 << 30)


# --- SSH


def test_ssh_workers_build(built: Built, tmp_path: Path) -> None:
    """A server of SSH on loopback, which runs what it is asked to."""
    key = asyncssh.generate_private_key("ssh-ed25519")

    class Anybody(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

    processes: list[subprocess.Popen[bytes]] = []
    sessions: list[asyncio.Task[Any]] = []

    async def run(session: Any) -> None:
        sessions.extend(filter(None, [asyncio.current_task()]))
        process = subprocess.Popen(
            session.command, shell=True, env=ENVIRONMENT, cwd=tmp_path, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        processes.append(process)
        await session.redirect(stdout=process.stdout, stderr=process.stderr)
        while process.poll() is None:
            await asyncio.sleep(0.1)
        session.exit(process.returncode)

    async def listen() -> Any:
        return await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Anybody, server_host_keys=[key], process_factory=run
        )

    async def close() -> None:
        server.close()
        await asyncio.gather(*sessions, return_exceptions=True)

    def check() -> None:
        ended = [process.args for process in processes if process.poll() is not None]
        assert [command for command in ended if "dask" in str(command)] == []

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    ssh = script("ssh")
    options = ssh.arguments().parse_args(["127.0.0.1", "--workers", "1", "--port", str(free_port())])
    try:
        with ssh.cluster(options, port=server.get_port(), known_hosts=None, client_keys=None) as machines:
            assert machines.scheduler_address == f"tcp://127.0.0.1:{options.port}"
            with connected(machines.scheduler_address, check) as client:
                builds_a_block(built, client, tmp_path, check)
                (worker,) = client.scheduler_info()["workers"].values()
                assert worker["nthreads"] == 1
                assert listening(client)[worker["services"]["dashboard"]] == "127.0.0.1"
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
