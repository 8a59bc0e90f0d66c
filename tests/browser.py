"""A headless Chromium that tests drive through its own protocol, over two pipes."""

import base64
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = "chromium"
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


class Tab:
    """A tab. It notes all that the pages complain of: errors, warnings, refused addresses."""

    def __init__(self, commands: Any, answers: Any) -> None:
        self._commands, self._answers = commands, answers
        self._numbers, self._session = itertools.count(1), ""
        self.complaints: list[str] = []
        self.loaded = 0
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        self._commands.write(json.dumps({"id": number, "method": method, "params": parameters, **session}) + "\0")
        self._commands.flush()
        while (answer := self._receive()).get("id") != number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        text = b"".join(iter(lambda: self._answers.read(1), b"\0"))
        message: dict[str, Any] = json.loads(text)
        match message.get("method"):
            case "Page.loadEventFired":
                self.loaded += 1
            case "Runtime.exceptionThrown" | "Log.entryAdded" | "Runtime.consoleAPICalled":
                parameters = message["params"]
                kind = parameters.get("type") or parameters.get("entry", {}).get("level") or "error"
                if kind not in ("log", "info", "debug"):
                    self.complaints.append(json.dumps(parameters))
        return message

    def open(self, page: Path) -> None:
        """Open a page and wait until it has loaded."""
        before = self.loaded
        self.send("Page.navigate", url=page.as_uri())
        self.wait_for_load(before)

    def wait_for_load(self, before: int) -> None:
        while self.loaded == before:
            self._receive()

    def follow(self, script: str) -> None:
        """Do something that opens another page, and wait until that has loaded."""
        before = self.loaded
        self.run(script)
        self.wait_for_load(before)

    def run(self, script: str) -> Any:
        """The value of an expression; of a promise, what it comes to."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """Click with the mouse, at a position in the window, px."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def screenshot(self, path: Path) -> None:
        """Save what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


@contextmanager
def open_browser(profile: Path, size: str = "1200,900") -> Iterator[Tab]:
    """Start a browser, which is stopped when the context ends. size: of its window, px."""
    (command_end, commands), (answers, answer_end) = os.pipe(), os.pipe()
    # The browser reads commands from descriptor 3 and writes answers to descriptor 4.
    start = f'exec "$@" 3<&{command_end} 4>&{answer_end}'
    given = [BROWSER, *OPTIONS, f"--window-size={size}", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["bash", "-c", start, "bash", *given], pass_fds=(command_end, answer_end), stderr=subprocess.DEVNULL
    )
    os.close(command_end)
    os.close(answer_end)
    try:
        with os.fdopen(commands, "w") as writing, os.fdopen(answers, "rb") as reading:
            yield Tab(writing, reading)
    finally:
        process.terminate()
        process.wait()
