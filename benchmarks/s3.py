"""An S3 server on 127.0.0.1 that can reject requests, as a busy one does.

It runs in a separate process, because GDAL keeps Python's global lock while it looks for files next to a raster.
"""

import itertools
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

ANSWERS = (("500 Internal Server Error", "InternalError"), ("503 Slow Down", "SlowDown"))
PROCESSES = multiprocessing.get_context("spawn")


@dataclass
class Server:
    """A running server with one empty bucket, `bucket`."""

    address: str
    counts: Any
    """Shared with its process: requests, rejected requests, `one_in`, and whether requests are recorded."""
    asked: Any
    """Queue of the method, path and query of each recorded request."""

    @property
    def requests(self) -> int:
        return int(self.counts[0])

    @property
    def refused(self) -> int:
        return int(self.counts[1])

    @property
    def one_in(self) -> int:
        """One request in this many is rejected, with 500 and 503 by turns; 0: none."""
        return int(self.counts[2])

    @one_in.setter
    def one_in(self, number: int) -> None:
        self.counts[2] = number

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """Record requests: method, path and query of each are in the list when the context ends."""
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.extend(iter(self.asked.get, None)))
        reader.start()  # the queue is a pipe, and a full one would stop the server
        self.counts[3] = 1
        try:
            yield found
        finally:
            self.counts[3] = 0
            self.asked.put(None)
            reader.join()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            config=Config(retries={"max_attempts": 20, "mode": "standard"}),
        )

    def keys(self, prefix: str) -> list[str]:
        """Keys of the objects below a prefix, relative to it."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/")
        return [item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", [])]

    def get(self, key: str) -> bytes:
        data: bytes = self.client().get_object(Bucket="bucket", Key=key)["Body"].read()
        return data

    def put(self, key: str, data: bytes) -> None:
        self.client().put_object(Bucket="bucket", Key=key, Body=data)

    def copy(self, prefix: str, other: str) -> None:
        """Copy all objects below a prefix to another prefix."""
        client = self.client()
        for key in self.keys(prefix):
            client.copy_object(Bucket="bucket", Key=f"{other}/{key}", CopySource=f"bucket/{prefix}/{key}")

    def upload(self, path: Path, key: str) -> str:
        """Upload a file to a key, or all files of a directory below it. Returns the URL."""
        client = self.client()
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                below = "" if file == path else f"/{file.relative_to(path)}"
                client.upload_file(str(file), "bucket", f"{key}{below}")
        return f"s3://bucket/{key}"


def end_with_parent() -> None:
    """Exit when the parent process ends, even if it is killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(0)


def serve(port: Any, counts: Any, asked: Any) -> None:
    """Run the server; its process."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(
        logging.CRITICAL
    )  # it logs a line per request, and one for each killed client
    app = DomainDispatcherApplication(create_backend_app)
    turned, lock = itertools.cycle(ANSWERS), threading.Lock()

    def answer(environ: dict[str, Any], start: Any) -> Any:
        with lock:
            counts[0] += 1
            away = counts[2] and counts[0] % counts[2] == 0
            counts[1] += bool(away)
            status, code = next(turned) if away else ("", "")
        if counts[3]:
            query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
            asked.put(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query}")
        if not away:
            return app(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{code}</Code><Message>Try again.</Message></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    threading.Thread(target=end_with_parent, daemon=True).start()
    http = make_server("127.0.0.1", 0, answer, threaded=True)
    port.put(http.server_port)
    http.serve_forever()


@contextmanager
def s3_server() -> Iterator[Server]:
    """A server in a separate process."""
    port, asked, counts = PROCESSES.SimpleQueue(), PROCESSES.SimpleQueue(), PROCESSES.Array("l", 4)
    process = PROCESSES.Process(target=serve, args=(port, counts, asked), daemon=True)
    process.start()
    try:
        server = Server(f"http://127.0.0.1:{port.get()}", counts, asked)
        server.client().create_bucket(Bucket="bucket")
        yield server
    finally:
        process.kill()
        process.join()
