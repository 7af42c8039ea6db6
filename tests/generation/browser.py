"""A headless Chromium for tests, driven through ChromeDriver by the W3C WebDriver protocol, which is JSON over HTTP."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find_or_install() -> None:
    """Skip, with the reason, where there is no Chromium and none can be installed."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("no chromium and chromedriver here, and installing them takes root and apt-get")
    subprocess.run(["apt-get", "update"], capture_output=True)
    done = subprocess.run(["apt-get", "install", "-y", "chromium", "chromium-driver"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"apt-get could not install chromium and chromium-driver: {done.stderr.strip()[-300:]}")


def wait(condition, seconds: float = 600):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, "the page did not get there in time"
        time.sleep(0.05)


MIDDLE = """
const element = document.querySelector(arguments[0]);
element.scrollIntoView({block: 'center', behavior: 'instant'});
const box = element.getClientRects()[0];
return [box.left + box.width / 2, box.top + box.height / 2];
"""


@dataclass(frozen=True)
class Device:
    """A screen in CSS pixels, a mouse or a finger, light or dark."""

    width: int
    height: int
    touch: bool = False
    dark: bool = False

    def __str__(self) -> str:
        return f"{'phone' if self.touch else 'desk'}-{'dark' if self.dark else 'light'}"

    def press(self, browser: "Browser", selector: str) -> None:
        """Click or tap."""
        (browser.tap if self.touch else browser.click)(selector)


DEVICES = [Device(*size, dark) for size in ((1440, 1000, False), (390, 844, True)) for dark in (False, True)]


class Browser:
    """A window of 1280 x 1000 with an empty profile."""

    def __init__(self, profile: Path, dark: bool = False):
        port = free_port()
        self.driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.base = f"http://127.0.0.1:{port}"
        wait(self._ready)
        flags = [*FLAGS, f"--user-data-dir={profile}", "--window-size=1280,1000"]
        flags += ["--force-dark-mode"] if dark else []
        options = {"alwaysMatch": {"goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}}
        self.base += "/session/" + self._call("POST", "/session", {"capabilities": options})["sessionId"]

    def _ready(self) -> bool:
        try:
            return self._call("GET", "/status")["ready"]
        except urllib.error.URLError:
            return False

    def _call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments):
        """What JavaScript returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters):
        """What a command of the Chrome DevTools Protocol gives."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def device(self, device: "Device") -> None:
        """Show pages as a device does."""
        size = {"width": device.width, "height": device.height, "deviceScaleFactor": 1, "mobile": device.touch}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self.devtools("Emulation.setTouchEmulationEnabled", enabled=device.touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if device.dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def overflows(self) -> bool:
        """Whether the page is wider than its window."""
        return self.run("return document.documentElement.scrollWidth > innerWidth || visualViewport.scale < 1")

    def tap(self, selector: str) -> None:
        """Touch the middle of the first line of an element, scrolled into view."""
        x, y = self.run(MIDDLE, selector)
        self.devtools("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.devtools("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def click(self, selector: str) -> None:
        """Move the mouse to the middle of the first line of an element, scrolled into view, and click."""
        x, y = self.run(MIDDLE, selector)
        self.devtools("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.devtools("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tab(self) -> str:
        """Open a tab and go there."""
        handle = self._call("POST", "/window/new", {"type": "tab"})["handle"]
        self.switch(handle)
        return handle

    def current(self) -> str:
        return self._call("GET", "/window")

    def switch(self, handle: str) -> None:
        self._call("POST", "/window", {"handle": handle})

    def complaints(self) -> list[str]:
        """What the browser wrote to its console."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def close(self) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()
