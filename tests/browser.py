"""Chromium, headless, spoken to over two pipes (--remote-debugging-pipe): no driver and no package is needed.

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
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--hide-scrollbars", "--remote-debugging-pipe")  # fmt: skip


def find_chromium() -> str | None:
    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


class Browser:
    """One page of a headless Chromium with a profile of its own."""

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False):
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        (to_read, self.write_end), (self.read_end, to_write) = os.pipe(), os.pipe()
        command = 'exec "$@" 3<&"$IN" 4>&"$OUT"'  # it reads commands from 3 and writes replies to 4
        self.process = subprocess.Popen(["bash", "-c", command, "-", find_chromium(), *FLAGS, f"--user-data-dir={self.profile}", "about:blank"], pass_fds=(to_read, to_write),
                                        env=os.environ | {"IN": str(to_read), "OUT": str(to_write)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(to_read), os.close(to_write)
        self.buffer, self.number, self.session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.write_end), os.close(self.read_end)
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
        call = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
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
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **({"clip": self.page_box()} if whole else {}))["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def page_box(self) -> dict:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="an HTML file")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--width", type=int, default=1280, help="pixels (default %(default)s)")
    parser.add_argument("--height", type=int, default=0, help="pixels (default %(default)s: the whole page)")
    parser.add_argument("--dark", action="store_true", help="the dark theme")
    args = parser.parse_args()
    with Browser(args.width, args.height or 900, args.dark) as browser:
        browser.open(args.page)
        browser.screenshot(args.picture, whole=not args.height)


if __name__ == "__main__":
    main()
