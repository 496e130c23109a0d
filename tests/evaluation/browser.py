"""A headless Chromium, driven through its own protocol: no package is needed between."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

# An npm package that carries a headless Chromium and the libraries it needs, compressed.
PACKAGE = "@sparticuz/chromium@147.0.0"
KEPT = Path(__file__).resolve().parents[2] / ".cache" / "browser"
UNPACK = """
const fs = require("fs"), zlib = require("zlib");
for (const name of ["chromium", "al2023.tar"])
    fs.writeFileSync(name, zlib.brotliDecompressSync(fs.readFileSync(`package/bin/${name}.br`)));
"""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# It reads commands from file descriptor 3 and answers on 4. Another process puts them there, since
# the tests have threads that must not be forked.
LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]
os.dup2(pipes[0], 3), os.dup2(pipes[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60.0  # seconds until a browser that does not answer is given up


def find_browser() -> str | None:
    """$CHROMIUM, one on the path, one that playwright has installed, or one that npm can get."""
    candidates: Iterator[str | None] = iter((os.environ.get("CHROMIUM"), *map(shutil.which, NAMES)))
    if found := next((each for each in candidates if each), None):
        return found
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright")
    shells = [*cache.glob("chromium*/chrome-*/headless_shell"), *cache.glob("chromium*/*/chrome")]
    return str(shells[0]) if shells else _from_npm()


def _from_npm() -> str | None:
    """A browser in `KEPT`, fetched once where there are npm and node (68 MB)."""
    program = KEPT / "run"
    if not program.exists() and shutil.which("npm") and shutil.which("node"):
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT.parent) as folder:
            steps = [
                ["npm", "pack", "--silent", PACKAGE],
                ["sh", "-c", "tar -xzf *.tgz"],
                ["node", "-e", UNPACK],
                ["tar", "-xf", "al2023.tar"],
            ]
            for step in steps:
                done = subprocess.run(step, cwd=folder, capture_output=True, check=False)
                if done.returncode:
                    return None
            here = Path(folder)
            (here / "chromium").chmod(0o755)
            shutil.copytree(here / "lib", KEPT / "lib", dirs_exist_ok=True)
            shutil.copy(here / "chromium", KEPT / "chromium")
        program.write_text(
            f'#!/bin/sh\nLD_LIBRARY_PATH={KEPT}/lib exec {KEPT}/chromium "$@"\n', encoding="utf-8"
        )
        program.chmod(0o755)
    return str(program) if program.exists() else None


class Browser:
    """One page. `console` has what went wrong in it; `requests` all addresses it asked for."""

    def __init__(self, program: str) -> None:
        self.console: list[str] = []
        self.requests: list[str] = []
        self._last = 0
        self._buffer = b""
        self._profile = tempfile.mkdtemp(prefix="browser-")
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-ISc", LAUNCH, str(to_browser), str(from_browser), program),
                *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--remote-debugging-pipe", f"--user-data-dir={self._profile}", "about:blank"),
            ],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)

    def __enter__(self) -> Self:
        try:
            targets = self._ask("Target.getTargets")["targetInfos"]
            page = next(each["targetId"] for each in targets if each["type"] == "page")
            attached = self._ask("Target.attachToTarget", targetId=page, flatten=True)
            self._session: str = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, address: str) -> None:
        """Open a page, and wait until its script has started."""
        # A change of the part behind # alone would load nothing.
        self.ask("Page.navigate", url="about:blank")
        self.requests.clear()
        self.console.clear()
        self.ask("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is, in the page. Raises where it throws."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until it is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} did not become true; console: {self.console}")
            time.sleep(0.05)

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self, file: Path, *, width: int, height: int, dark: bool = False) -> None:
        """What a reader sees, where the page is scrolled to."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

    def ask(self, method: str, **parameters: Any) -> Any:
        return self._ask(method, self._session, **parameters)

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], PATIENCE)[0]:
                raise TimeoutError("the browser does not answer")
            more = os.read(self._read, 1 << 20)
            if not more:
                raise RuntimeError("the browser ended")
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.console.append(json.dumps(about["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.console.append(json.dumps(about["args"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.console.append(about["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
