#!/usr/bin/env python3
"""Shows the page at / in headless Chromium, and checks what a person would stumble over.

    [AXE=axe.min.js] scripts/look-at-page.py DIRECTORY [EXPORTER]

Starts an exporter (EXPORTER, or target/debug/exporter) that traces a FIBRE demo, a program that is not there and one with a probe
that is refused, has 120 probes that nothing hits, and counts packets, in a network namespace of its own. Takes pictures into DIRECTORY: light,
dark, on phones, and without scripts. Fails if the page does not draw, if the browser logs an error or a violation of the page's policy, if
something is wider than the screen or scrolls sideways, if a short word is broken, or if what was unfolded does not stay so. With AXE, the page is also checked by axe-core (npm's package of that name has the
file). Needs root, and Debian's chromium (360 MB, which is why no test installs it).
"""

import base64
import json
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
PORT, HEALTH = 19460, 19461
TIMEOUT = 120
CONFIG = """
node_name: london
metrics_port: {port}
health_port: {health}
metrics_auth_username: prometheus
metrics_auth_password: the-password
targets:
  - name: bitcoind
    binary: {directory}/bitcoind
    profile: fibre
  - name: forms
    binary: {directory}/leaf
    probes:
      - {{ on: "usdt:leaf:nop", metrics: [{{ counter: leaf_calls_total, help: "Calls of <b>leaf</b>." }}] }}
      - {{ on: "usdt:leaf:nop5", metrics: [{{ counter: leaf_nop5_total }}] }}
      - {{ on: "usdt:leaf:gone", metrics: [{{ counter: leaf_gone_total }}] }}
  - name: billing
    binary: /opt/billing/bin/billingd
    probes:
      - {{ function: charge, metrics: [{{ counter: billing_charges_total }}] }}
  - name: idle
    binary: {directory}/libidle.so
    probes: [{idle}]
slow_events:
  file: {directory}/slow.sqlite
  metrics:
    fibre_block_reconstruction_duration_seconds: 100ms
network:
  interfaces: [lo]
  count: {{ talkers: true }}
  block:
    mode: {mode}
    file: {directory}/blocklist.db
    socket: {directory}/control.sock
    entries:
      - 198.51.100.0/24
      - {{ prefix: 203.0.113.7, reason: "scans <ports>", ttl: 12h }}
      - 2001:db8:bad::/48
"""

# Probes that nothing hits.
IDLE = 120

# Tables that have to be scrolled sideways.
SCROLLED = """[...document.querySelectorAll(".table")].filter((one) => one.scrollWidth > one.clientWidth + 1)
  .map((one) => one.getAttribute("aria-label")).join(", ")"""

# Words of a table that stand on several lines though none of them is long; empty if there are none.
BROKEN_WORDS = """[...document.querySelectorAll("th .mono, td.labels")].filter((cell) => {
  const words = document.createRange();
  words.selectNodeContents(cell);
  const lines = new Set([...words.getClientRects()].map((box) => Math.round(box.bottom)));
  return /^\\S{1,16}$/.test(cell.textContent) && lines.size > 1;
}).map((cell) => cell.textContent).join(", ")"""


class Browser:
    """Chromium, spoken to by its remote protocol over two pipes."""

    def __init__(self):
        ours, self.write = os.pipe()
        self.read, theirs = os.pipe()
        command = f"exec chromium --headless=new --no-sandbox --disable-gpu --remote-debugging-pipe 3<&{ours} 4>&{theirs}"
        self.directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            ["sh", "-c", f"{command} --user-data-dir={self.directory.name}"],
            pass_fds=(ours, theirs),
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self.directory.name},
        )
        os.close(ours)
        os.close(theirs)
        self.number, self.buffer, self.complaints = 0, b"", []
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def message(self):
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], max(0, deadline - time.monotonic()))[0]:
                sys.exit("look-at-page: the browser says nothing")
            self.buffer += os.read(self.read, 1 << 20) or sys.exit("look-at-page: the browser has ended")
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def call(self, method, **parameters):
        self.number += 1
        request = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            request["sessionId"] = self.session
        os.write(self.write, json.dumps(request).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == self.number:
                if "error" in answer:
                    sys.exit(f"look-at-page: {method}: {answer['error']}")
                return answer["result"]
            event, told = answer.get("method"), answer.get("params", {})
            if event == "Runtime.exceptionThrown" or (event == "Log.entryAdded" and told["entry"]["level"] == "error"):
                self.complaints.append(json.dumps(told))

    def value(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression):
        deadline = time.monotonic() + TIMEOUT
        while not self.value(expression):
            if time.monotonic() > deadline:
                sys.exit(f"look-at-page: waited in vain for {expression}\n" + "\n".join(self.complaints))
            time.sleep(0.2)

    def picture(self, path):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def look(self, path, url, width, scheme, with_scripts):
        is_phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=is_phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setScriptExecutionDisabled", value=not with_scripts)
        self.call("Page.navigate", url=url)
        if with_scripts:
            self.wait_for("document.querySelector('.tiles') !== null")
            # The second answer brings rates, and some more what was in the last minute.
            self.wait_for("document.querySelectorAll('svg .line').length > 3")
            time.sleep(12)
            too_wide = self.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if too_wide > 0:
                self.complaints.append(f"{path.name}: {too_wide} pixels wider than the screen")
            if scrolled := self.value(SCROLLED):
                self.complaints.append(f"{path.name}: tables that scroll sideways: {scrolled}")
            self.check_folded(path.name)
            if broken := self.value(BROKEN_WORDS):
                self.complaints.append(f"{path.name}: broken though they are short: {broken}")
        else:
            self.wait_for("document.readyState === 'complete' && document.querySelector('#h-probes') !== null")
        self.picture(path)

    def check_folded(self, name):
        """What has been unfolded stays so when the page is drawn again."""
        self.value("document.querySelectorAll('details').forEach((one) => one.firstChild.click())")
        before = self.value("document.getElementById('about').textContent")
        self.wait_for(f"document.getElementById('about').textContent !== {json.dumps(before)}")
        closed = "document.querySelectorAll('details:not([open])').length"
        if self.value("document.querySelectorAll('details').length") == 0 or self.value(closed) > 0:
            self.complaints.append(f"{name}: what was unfolded does not stay so, or nothing is folded")
        self.value("document.querySelectorAll('details').forEach((one) => one.firstChild.click())")

    def check_find(self, name):
        """Only what has the words is shown, nothing of it folded, and all of it again without them."""
        def find(words):
            self.value(f"(() => {{ const one = document.getElementById('find'); one.value = {json.dumps(words)};"
                       " one.dispatchEvent(new Event('input')); })()")
            return self.value("document.getElementById('found').textContent")
        rows = "[...document.querySelectorAll('#live tr')].filter((row) => row.dataset.key).length"
        before = self.value(rows)
        words = {"IDLE idle11": "11 probes, 11 metrics", "no such thing": "nothing found"}
        told = {looked: find(looked) for looked in words}
        if told != words or self.value(rows) > 0:
            self.complaints.append(f"{name}: found {told}")
        if find("") != "" or self.value(rows) != before:
            self.complaints.append(f"{name}: not all is shown again")

    def check_by_axe(self, name):
        """What keeps a keyboard or a screen reader from using the page."""
        if "AXE" not in os.environ:
            return
        self.call("Runtime.evaluate", expression=pathlib.Path(os.environ["AXE"]).read_text())
        run = "axe.run(document, {resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))"
        answer = self.call("Runtime.evaluate", expression=run, awaitPromise=True, returnByValue=True)
        for one in json.loads(answer["result"]["value"]):
            places = ", ".join(" ".join(map(str, node["target"])) for node in one["nodes"][:3])
            self.complaints.append(f"{name}: axe: {one['impact']}: {one['help']}: {places}")

    def check_keyboard(self, name):
        """Everything that can be scrolled or pressed is reached by the tab key, in its order, and seen to be."""
        wanted = self.value(
            "[...document.querySelectorAll('a[href], button, input, summary, [tabindex=\"0\"]')]"
            ".filter((one) => !one.hidden && one.offsetParent !== null).length"
        )
        reached = []
        self.value("document.body.focus(); document.activeElement.blur()")
        for _ in range(wanted):
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
            reached.append(self.value(
                "(() => { const one = document.activeElement; const style = getComputedStyle(one);"
                " const seen = style.outlineStyle !== 'none' || style.boxShadow !== 'none';"
                " return `${one.tagName} ${one.id || one.getAttribute('aria-label') || one.textContent}${seen ? '' : ' without an outline'}`; })()"
            ))
        if len(set(reached)) != wanted or any(one.startswith("BODY") or one.endswith("outline") for one in reached):
            self.complaints.append(f"{name}: {wanted} elements can be used, the tab key reaches {reached}")

    def end(self):
        self.process.kill()
        self.process.wait()
        self.directory.cleanup()


def ping_pong(stopped):
    """Some traffic on lo, also from sources that are blocked."""
    here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    forged = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    target = socket.inet_aton("127.0.0.1")
    while not stopped.wait(0.01):
        here.sendto(b"x" * 900, ("127.0.0.1", 9))
        for source in ("203.0.113.7", "198.51.100.77"):
            datagram = struct.pack("!4H4x", 4000, 9, 12, 0)
            header = struct.pack("!BxHxxxxBBxx4s4s", 0x45, 20 + len(datagram), 64, socket.IPPROTO_UDP, socket.inet_aton(source), target)
            forged.sendto(header + datagram, ("127.0.0.1", 0))


def idle_probes(directory):
    """Of a library that no process has."""
    library = pathlib.Path(directory, "libidle.so")
    numbers = range(IDLE)
    source = "".join(f"int idle{number}(int a) {{ return a * {number}; }}\n" for number in numbers)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-xc", "-", "-o", library], input=source.encode(), check=True)
    return ", ".join(f"{{ function: idle{number}, metrics: [{{ counter: idle{number}_total }}] }}" for number in numbers)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if "IN_NAMESPACE" not in os.environ:
        os.environ["IN_NAMESPACE"] = "yes"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["make", "--silent", "-C", ROOT / "demo"], check=True)
    pictures = pathlib.Path(sys.argv[1])
    pictures.mkdir(parents=True, exist_ok=True)
    exporter = sys.argv[2] if len(sys.argv) > 2 else ROOT / "target/debug/exporter"
    started, stopped = [], threading.Event()
    with tempfile.TemporaryDirectory() as directory:
        for name, copy in (("fibre-demo", "bitcoind"), ("leaf", "leaf")):
            subprocess.run(["cp", ROOT / "target/demo" / name, f"{directory}/{copy}"], check=True)
        config = pathlib.Path(directory, "config.yaml")
        config.write_text(CONFIG.format(port=PORT, health=HEALTH, directory=directory, mode="enforce", idle=idle_probes(directory)))
        browser = None
        try:
            started.append(subprocess.Popen([exporter, "--config", config], stdout=(pictures / "log").open("w")))
            health = f"http://127.0.0.1:{HEALTH}/health"
            deadline = time.monotonic() + TIMEOUT
            while True:
                try:
                    urllib.request.urlopen(health, timeout=5).close()
                    break
                except OSError:
                    if time.monotonic() > deadline or started[0].poll() is not None:
                        sys.exit(f"look-at-page: the exporter does not serve; see {pictures}/log")
                    time.sleep(0.1)
            started.append(subprocess.Popen([f"{directory}/bitcoind", "--rate", "9"], stdout=subprocess.DEVNULL))
            started.append(subprocess.Popen([f"{directory}/leaf", "1000000"], stdout=subprocess.DEVNULL))
            threading.Thread(target=ping_pong, args=(stopped,), daemon=True).start()
            metrics = urllib.request.Request(f"http://127.0.0.1:{PORT}/metrics")
            metrics.add_header("Authorization", "Basic " + base64.b64encode(b"prometheus:the-password").decode())
            metrics.add_header("User-Agent", "Prometheus/3.5.0")
            urllib.request.urlopen(metrics).close()
            browser = Browser()
            url = f"http://prometheus:the-password@127.0.0.1:{PORT}/"
            for name, width, scheme in (("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "dark"), ("small-phone", 320, "light")):
                browser.look(pictures / f"{name}.png", url, width, scheme, True)
                browser.check_by_axe(name)
                browser.check_keyboard(name)
                browser.check_find(name)
            browser.look(pictures / "without-scripts.png", url, 1280, "light", False)
            # What is not answered is told.
            browser.look(pictures / "light.png", url, 1280, "light", True)
            complaints = list(browser.complaints)
            started[0].send_signal(signal.SIGSTOP)
            browser.wait_for("document.body.classList.contains('stale')")
            browser.picture(pictures / "no-answer.png")
            started[0].send_signal(signal.SIGCONT)
            browser.wait_for("!document.body.classList.contains('stale')")
        finally:
            stopped.set()
            if browser:
                browser.end()
            for process in started:
                process.kill()
                process.wait()
    if complaints:
        sys.exit("look-at-page:\n" + "\n".join(complaints))
    print(f"look-at-page: see {pictures}")


main()
