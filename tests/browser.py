"""A headless Chromium by the W3C WebDriver protocol, which is JSON over HTTP: Debian's chromium and chromium-driver."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which the protocol names an element."""
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --force-color-profile=srgb --hide-scrollbars"
).split()

_SEEN = """
const found = document.evaluate(arguments[0], document, null, XPathResult.ORDERED_NODE_SNAPSHOT_TYPE, null);
for (let i = 0; i < found.snapshotLength; i++)
  if (found.snapshotItem(i).checkVisibility({visibilityProperty: true})) return found.snapshotItem(i);
"""


class Browser:
    """One window, and others that it opens; `wait` is how long a condition has."""

    def __init__(self, address: str, wait: float = 60.0):
        self.address, self.wait = address, wait

    def ask(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(f"{self.address}{path}", data, {"Content-Type": "application/json"})
        request.method = method
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise LookupError(json.load(error)["value"]["message"]) from None

    def open(self, url: str) -> None:
        self.ask("POST", "/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.ask("POST", "/execute/sync", script=script, args=list(arguments))

    def until(self, what: Callable[[], Any], name: str = "") -> Any:
        """The first true value of a function."""
        end, last = time.monotonic() + self.wait, None
        while time.monotonic() < end:
            try:
                if last := what():
                    return last
            except LookupError as error:
                last = error
            time.sleep(0.05)
        raise AssertionError(f"{name or what} did not come within {self.wait:g} s: {last!r}")

    def find(self, xpath: str) -> str:
        """The first element of a path that is seen."""
        return self.until(lambda: (self.run(_SEEN, xpath) or {}).get(ELEMENT), xpath)

    def click(self, xpath: str) -> None:
        self.until(lambda: self.ask("POST", f"/element/{self.find(xpath)}/click") is None, f"a click on {xpath}")

    def type(self, xpath: str, text: str) -> None:
        """What the field holds is replaced."""
        element = self.find(xpath)
        self.ask("POST", f"/element/{element}/clear")
        self.ask("POST", f"/element/{element}/value", text=text)

    def send(self, xpath: str, path: Path) -> None:
        """A file to a field for files, which no page shows."""
        found = self.until(lambda: self.ask("POST", "/elements", using="xpath", value=xpath), xpath)
        self.ask("POST", f"/element/{found[0][ELEMENT]}/value", text=str(path))

    def text(self, xpath: str) -> str:
        """The text of the first element of a path that is seen, white space as it stands there."""
        return self.run("return arguments[0].textContent", {ELEMENT: self.find(xpath)})

    def new_window(self) -> str:
        """A window more, which is the one that is seen from here on; returns what `switch` takes to go back."""
        before = self.ask("GET", "/window")
        self.switch(self.ask("POST", "/window/new", type="tab")["handle"])
        return before

    def switch(self, handle: str) -> None:
        self.ask("POST", "/window", handle=handle)

    def size(self, width: int, height: int) -> None:
        self.ask("POST", "/window/rect", width=width, height=height)

    def screenshot(self) -> bytes:
        """A PNG of what is seen."""
        return base64.b64decode(self.ask("GET", "/screenshot"))


@contextmanager
def browser(place: Path) -> Iterator[Browser]:
    """A Chromium with nothing remembered, whose profile lies in `place`."""
    assert CHROMIUM and DRIVER
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}", "--silent"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(place)},
    )
    opened = Browser(f"http://127.0.0.1:{port}")
    try:
        opened.until(lambda: _answers(opened), "chromedriver")
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={place / 'profile'}"]}
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        session = opened.ask("POST", "/session", capabilities=wanted)["sessionId"]
        opened.address += f"/session/{session}"
        try:
            yield opened
        finally:
            opened.ask("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()


def _answers(opened: Browser) -> bool:
    try:
        return bool(opened.ask("GET", "/status")["ready"])
    except OSError:
        return False
