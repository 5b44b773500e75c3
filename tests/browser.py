"""Chromium, headless, over two pipes (--remote-debugging-pipe): no driver and no package is needed.

python tests/browser.py runs/default/report.html page.png --width 390 --dark     # a screenshot
"""

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

PATIENCE = 120  # seconds without a word from Chromium
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def find_chromium() -> str | None:
    """The path of an installed Chromium, None if there is none."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


class Browser:
    """One page of a headless Chromium with a profile of its own."""

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False):
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        to_read, self.write_end = os.pipe()
        self.read_end, to_write = os.pipe()
        redirect = 'exec "$@" 3<&"$IN" 4>&"$OUT"'  # it reads commands from 3 and writes replies to 4
        chromium = [find_chromium(), *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", redirect, "-", *chromium],
            pass_fds=(to_read, to_write),
            env=os.environ | {"IN": str(to_read), "OUT": str(to_write)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.buffer = b""
        self.number = 0
        self.session = None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.write_end)
        os.close(self.read_end)
        for _ in range(20):  # its other processes may still be writing
            shutil.rmtree(self.profile, ignore_errors=True)
            if not Path(self.profile).exists():
                break
            time.sleep(0.1)

    def message(self) -> dict:
        while b"\0" not in self.buffer:
            if not select.select([self.read_end], [], [], PATIENCE)[0]:
                raise RuntimeError(f"Chromium has said nothing for {PATIENCE} s")
            if not (data := os.read(self.read_end, 1 << 20)):
                raise RuntimeError("Chromium has ended")
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def call(self, method: str, **parameters: object) -> dict:
        self.number += 1
        call = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            call["sessionId"] = self.session
        os.write(self.write_end, json.dumps(call).encode() + b"\0")
        while (reply := self.message()).get("id") != self.number:
            self.events.append(reply)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        return reply["result"]

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())

    def evaluate(self, expression: str):
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description"))
        return result["result"].get("value")

    def screenshot(self, path: Path, whole: bool = True) -> None:
        clip = {"clip": self.page_box()} if whole else {}
        reply = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **clip)
        Path(path).write_bytes(base64.b64decode(reply["data"]))

    def page_box(self) -> dict:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        height = min(size["height"], 16000)
        return {"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("page", type=Path, help="an HTML file")
    add("image", type=Path, help="the PNG to write")
    add("--width", type=int, default=1280, help="pixels (default %(default)s)")
    add("--height", type=int, default=0, help="pixels (default %(default)s: the whole page)")
    add("--dark", action="store_true", help="the dark theme")
    args = parser.parse_args()
    with Browser(args.width, args.height or 900, args.dark) as browser:
        browser.open(args.page)
        browser.screenshot(args.image, whole=not args.height)


if __name__ == "__main__":
    main()
