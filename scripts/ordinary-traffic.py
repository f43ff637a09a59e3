#!/usr/bin/env python3
"""Measures false positives: ordinary traffic of real clients, in namespaces, with every module of detection enforcing.

    scripts/ordinary-traffic.py target/release/exporter

A server behind a router, and behind the router's one address 500 users, each with an address of its own (nftables' masquerade). curl,
git, rsync and Chromium (if there is one) fetch what the server has; nothing of this may be detected. Then nmap, which must be. Prints
what was sent and detected; exits with 1 if that is wrong.

Needs root, ip, nft, curl, git, rsync and nmap.
"""

import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SERVER, ROUTER, USERS = (f"ord{part}{os.getpid()}" for part in "sru")
HERE = "10.98.0.1"
PORTS = range(8000, 8006)

WEB = """
import functools, http.server, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[2])
http.server.ThreadingHTTPServer.request_queue_size = 1024
http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), handler).serve_forever()
"""

NAMES = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 53))
while True:
    question, peer = server.recvfrom(2000)
    server.sendto(question, peer)
"""

ASK = """
import socket
for _ in range(1000):
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(10)
    client.sendto(b"question", ("10.98.0.1", 53))
    client.recv(9)
    client.close()
"""

# As a recorder of calls has it: it listens, and answers nothing.
MEDIA = """
import socket, time
streams = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(30)]
for _ in range(300):
    for number, stream in enumerate(streams):
        stream.sendto(bytes(160), ("10.98.0.1", 20000 + 2 * number))
    time.sleep(0.02)
"""

DOWN = """
import socket
for _ in range(200):
    client = socket.socket()
    client.settimeout(10)
    assert client.connect_ex(("10.98.0.1", 8099))
"""

CONFIG = """
metrics_port: 9435
health_port: 9436
bind: 127.0.0.1
network:
  interfaces: wire
  block: {{ mode: enforce, socket: {place}/control.sock, file: {place}/blocklist.db }}
  detect: {{ syn_flood: {{ mode: enforce }}, port_scan: {{ mode: enforce }}, tcp_anomalies: {{ mode: enforce }} }}
"""

started = []


def run(line, where=None, **more):
    words = ["ip", "netns", "exec", where, *line.split()] if where else line.split()
    return subprocess.run(words, check=True, capture_output=True, text=True, **more).stdout


def start(words, where, log):
    command = ["ip", "netns", "exec", where, *words]
    started.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))


def lay_out():
    for name in (SERVER, ROUTER, USERS):
        run(f"ip netns add {name}")
        run(f"ip -n {name} link set lo up")
    run(f"ip link add wire netns {SERVER} type veth peer name out netns {ROUTER}")
    run(f"ip link add wire netns {USERS} type veth peer name in netns {ROUTER}")
    for name, device, address in [
        (SERVER, "wire", f"{HERE}/24"),
        (ROUTER, "out", "10.98.0.2/24"),
        (ROUTER, "in", "10.97.0.1/16"),
        (USERS, "wire", "10.97.0.2/16"),
    ]:
        run(f"ip -n {name} address add {address} dev {device}")
        run(f"ip -n {name} link set {device} up")
    run(f"ip -n {USERS} route add default via 10.97.0.1")
    all_users = "".join(f"address add {user(number)}/16 dev wire\n" for number in range(500))
    run(f"ip -n {USERS} -batch -", input=all_users)
    run("sysctl -qw net.ipv4.ip_forward=1", ROUTER)
    run("nft add table ip nat", ROUTER)
    run("nft add chain ip nat out { type nat hook postrouting priority 100 ; }", ROUTER)
    run("nft add rule ip nat out oifname out masquerade", ROUTER)


def user(number):
    return f"10.97.{1 + number // 250}.{1 + number % 250}"


def wait_for(what, is_there):
    for _ in range(600):
        try:
            is_there()
            return
        except subprocess.CalledProcessError:
            time.sleep(0.2)
    sys.exit(f"{what} did not come")


def serve(exporter, place, log):
    for number in range(300):
        with open(f"{place}/www/{number}", "wb") as file:
            file.write(os.urandom(3000 + 50 * number))
    with open(f"{place}/www/page.html", "w", encoding="utf-8") as file:
        images = (f"<img src='http://{HERE}:{PORTS[number % len(PORTS)]}/{number}'>" for number in range(60))
        file.writelines(images)
    with open(f"{place}/www/large", "wb") as file:
        file.write(os.urandom(30 << 20))
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    run(f"git clone --quiet --bare --depth 30 file://{os.path.realpath(source)} {place}/source.git")
    for name, text in [
        ("rsyncd.conf", f"use chroot = no\n[www]\npath = {place}/www\n"),
        ("config.yaml", CONFIG.format(place=place)),
    ]:
        with open(f"{place}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    start([exporter, "--config", f"{place}/config.yaml"], SERVER, log)
    wait_for("the exporter", lambda: run("curl -sf http://127.0.0.1:9436/ready", SERVER))
    for port in PORTS:
        start([sys.executable, "-c", WEB, str(port), f"{place}/www"], SERVER, log)
    start([sys.executable, "-c", NAMES], SERVER, log)
    start(["git", "daemon", f"--base-path={place}", "--export-all", "--reuseaddr"], SERVER, log)
    start(["rsync", "--daemon", "--no-detach", f"--config={place}/rsyncd.conf", "--port=8730"], SERVER, log)
    for port in PORTS:
        wait_for("the server", lambda port=port: run(f"curl -sf -o /dev/null http://{HERE}:{port}/0", USERS))
    wait_for("git", lambda: run(f"git ls-remote git://{HERE}/source.git", USERS))
    wait_for("rsync", lambda: run(f"rsync rsync://{HERE}:8730/", USERS))


def many_users():
    def pages(number):
        urls = " ".join(f"-o /dev/null http://{HERE}:{port}/{number % 300}" for port in PORTS[:3])
        run(f"curl -sf --interface {user(number)} {urls}", USERS)

    with concurrent.futures.ThreadPoolExecutor(25) as pool:
        list(pool.map(pages, range(500)))


def fetch_all(place):
    urls = f"http://{HERE}:[{PORTS[0]}-{PORTS[-1]}]/[0-49]"
    run(f"curl -sfZ --parallel-max 50 -o {place}/#1-#2 {urls}", USERS)


def detected():
    text = run("curl -sf http://127.0.0.1:9435/metrics", SERVER)
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("security_events_total")]
    return {series: float(value) for series, value in lines if float(value)}


def measure(place):
    browser = shutil.which("chromium")
    steps = [
        ("300 files, 50 at once", lambda: fetch_all(place)),
        ("a download of 30 MB", lambda: run(f"curl -sf -o /dev/null http://{HERE}:8000/large", USERS)),
        *[("git clone", lambda number=number: run(f"git clone --quiet git://{HERE}/source.git {place}/{number}", USERS)) for number in range(3)],
        ("rsync of 301 files", lambda: run(f"rsync -a rsync://{HERE}:8730/www/ {place}/copy/", USERS)),
        ("500 users behind one address, three pages each", many_users),
        ("1,000 questions by UDP", lambda: run_python(ASK)),
        ("30 streams of media that nobody answers", lambda: run_python(MEDIA)),
        ("200 connections to a service that is down", lambda: run_python(DOWN)),
    ]
    if browser:
        page = f"{browser} --headless=new --no-sandbox --disable-gpu --user-data-dir={place}/browser --dump-dom http://{HERE}:8000/page.html"
        steps.insert(6, ("a page with 60 images of six servers", lambda: run(page, USERS)))
    for name, step in steps:
        step()
        # What comes of a flow is judged a second after it began.
        time.sleep(3)
        print(f"{name}: {detected() or 'nothing is detected'}", flush=True)
    if detected():
        return "ordinary traffic was detected"
    subprocess.run(["ip", "netns", "exec", USERS, "timeout", "60", "nmap", "-sS", "-n", "-Pn", "--max-retries", "0", "-p", "1-100", HERE], check=False, capture_output=True)
    time.sleep(3)
    print(f"nmap: {detected()}")
    return None if detected() else "nmap was not detected"


def run_python(program):
    subprocess.run(["ip", "netns", "exec", USERS, sys.executable, "-c", program], check=True)


def main():
    exporter = os.path.realpath(sys.argv[1])
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place, open(f"{place}/log", "w", encoding="utf-8") as log:
        os.mkdir(f"{place}/www")
        try:
            lay_out()
            serve(exporter, place, log)
            return measure(place)
        finally:
            for process in started:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for name in (SERVER, ROUTER, USERS):
                subprocess.run(["ip", "netns", "del", name], check=False)


if __name__ == "__main__":
    sys.exit(main())
