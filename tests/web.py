"""An HTTP server on 127.0.0.1 that serves ranges of files, as object stores do, in a separate process like `s3`."""

import multiprocessing
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.s3 import end_with_parent

PROCESSES = multiprocessing.get_context("spawn")


class Ranges(SimpleHTTPRequestHandler):
    """Serves files with ranges. Paths under `forbidden` are refused; files under `whole` are served without ranges."""

    def do_GET(self) -> None:
        if "/forbidden/" in self.path:
            self.send_error(403)
            return
        path = Path(self.translate_path(self.path))
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None or not path.is_file() or "/whole/" in self.path:
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = int(span[1]), int(span[2] or len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        self.wfile.write(part)

    def do_HEAD(self) -> None:
        self.send_error(403) if "/forbidden/" in self.path else super().do_HEAD()

    def log_message(self, *args: Any) -> None:
        pass


def serve(port: Any, directory: str) -> None:
    """Run the server; its process."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=directory)) as server:
        port.put(server.server_address[1])
        server.serve_forever()


@contextmanager
def web_server(directory: Path) -> Iterator[str]:
    """Serve a directory. Yields its URL."""
    port = PROCESSES.SimpleQueue()
    process = PROCESSES.Process(target=serve, args=(port, str(directory)), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get()}"
    finally:
        process.kill()
        process.join()
