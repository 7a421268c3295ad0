"""A headless Chromium that is told what to do: pages that fetch what they show, looked at when they have it."""

import base64
import contextlib
import itertools
import json
import subprocess
import time
import urllib.request

from websockets.sync.client import connect

from browser import CHROMIUM, FLAGS


class Gone(Exception):
    """The page that was asked has gone elsewhere meanwhile."""


class Tab:
    """A page, by Chromium's own protocol: https://chromedevtools.github.io/devtools-protocol"""

    def __init__(self, channel):
        self.channel, self.numbers = channel, itertools.count(1)

    def call(self, method, **params):
        number = next(self.numbers)
        self.channel.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self.channel.recv(60))).get("id") != number:
            pass
        if "error" in answer:
            raise Gone(answer["error"])
        return answer["result"]

    def open(self, url):
        self.call("Page.navigate", url=url)

    def value(self, script):
        """What a script gives, None where it fails: the page may not be so far."""
        try:
            found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        except Gone:
            return None
        return None if "exceptionDetails" in found else found["result"].get("value")

    def wait_for(self, script, seconds=120):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.value(script):
                return value
            time.sleep(0.3)
        raise AssertionError(f"{script} is not so within {seconds} s")

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browsing(folder, width=1500, height=1000):
    """A tab of a browser that has never been anywhere; its profile lies in `folder`."""
    flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    command = [CHROMIUM, *flags, "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = next(line for line in process.stderr if "DevTools listening on" in line)
            port = line.split("127.0.0.1:")[1].split("/")[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
                page = next(each for each in json.load(answer) if each["type"] == "page")
            with connect(page["webSocketDebuggerUrl"], max_size=None) as channel:
                yield Tab(channel)
        finally:
            process.kill()
