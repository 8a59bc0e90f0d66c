"""An S3 server on 127.0.0.1 that may turn requests away, as a busy one does."""

import itertools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ANSWERS = (("500 Internal Server Error", "InternalError"), ("503 Slow Down", "SlowDown"))


@dataclass
class Server:
    """A running server with one empty bucket, `bucket`."""

    address: str
    requests: int = 0
    refused: int = 0
    one_in: int = 0
    """Of so many requests one is turned away, by turns with 500 and 503; none for 0."""
    lock: Any = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment must hold."""
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
        """Keys of the objects below a prefix, from there on."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/")
        return [item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", [])]

    def get(self, key: str) -> bytes:
        data: bytes = self.client().get_object(Bucket="bucket", Key=key)["Body"].read()
        return data

    def put(self, key: str, data: bytes) -> None:
        self.client().put_object(Bucket="bucket", Key=key, Body=data)


@contextmanager
def s3_server() -> Iterator[Server]:
    """A server in threads of this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    app = DomainDispatcherApplication(create_backend_app)
    turned = itertools.cycle(ANSWERS)

    def serve(environ: dict[str, Any], start: Any) -> Any:
        with server.lock:
            server.requests += 1
            away = server.one_in and server.requests % server.one_in == 0
            server.refused += bool(away)
            status, code = next(turned) if away else ("", "")
        if not away:
            return app(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{code}</Code><Message>Try again.</Message></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    http = make_server("127.0.0.1", 0, serve, threaded=True)
    server = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        server.client().create_bucket(Bucket="bucket")
        yield server
    finally:
        http.shutdown()
        thread.join()
