# SPDX-License-Identifier: Apache-2.0
"""
For tests that do what an operator does: a machine of their own, as far as a script
sees it. /run is empty, /etc a copy, there is a loopback network and nothing else, and
no process outlives the script. Programs are started in it, and what they print is
waited for, with a limit.

An ordinary user stays one in there, and can become nobody else.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

LIMIT = 30  # seconds, of one wait


def skip(reason):
    print("SKIP:", reason)
    sys.exit(1 if os.environ.get("MUST_WORK") == "1" else 77)


def fail(reason):
    print("FAIL:", reason)
    for process in Process.all:
        print(f"--- {process.name}")
        print("\n".join(process.lines[-40:]))
    sys.stdout.flush()
    os._exit(1)  # threads wait for the output of what goes with this process


def may_become_others():
    return os.environ.get("SURROUNDINGS") == "root"


def enter():
    """Run the script once more inside; returns there."""
    if "SURROUNDINGS" in os.environ:
        prepare()
        return
    ordinary = ["--user", "--map-user=1000", "--map-group=1000", "--keep-caps"]
    user = [] if os.geteuid() == 0 else ordinary
    command = ["unshare", *user, "--mount", "--net", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare"):
        skip("unshare is not installed")
    if subprocess.run([*command, "true"], stderr=subprocess.DEVNULL).returncode != 0:
        skip("this host gives this user no namespaces")
    os.environ["SURROUNDINGS"] = "user" if user else "root"
    os.execvp("unshare", [*command, sys.executable, *sys.argv])


MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def mount(source, target, kind, flags, data=None):
    """mount(8) wants user id 0, whatever capabilities there are."""
    libc = ctypes.CDLL(None, use_errno=True)
    texts = [text.encode() if text else None for text in (source, target, kind, data)]
    if libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]) != 0:
        skip(f"mount {target}: {os.strerror(ctypes.get_errno())}")


def prepare():
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", 0)
    mount("run", "/run", "tmpfs", 0, "mode=755")
    os.makedirs("/run/.surroundings/etc")
    # What this user may not read is nothing that it needs.
    subprocess.run(["cp", "-a", "/etc/.", "/run/.surroundings/etc"], stderr=subprocess.DEVNULL)
    mount("/run/.surroundings/etc", "/etc", None, MS_BIND)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x41))


def use_programs(**programs):
    """These programs, by name, come first in PATH."""
    directory = "/run/.surroundings/bin"
    os.makedirs(directory, exist_ok=True)
    for name, path in programs.items():
        # What made the surroundings is no business of theirs.
        before = "" if may_become_others() else "setpriv --ambient-caps=-all --inh-caps=-all "
        script = os.path.join(directory, name)
        with open(script, "w") as file:
            file.write(f'#!/bin/sh\nexec {before}{path} "$@"\n')
        os.chmod(script, 0o755)
    os.environ["PATH"] = f"{directory}:{os.environ['PATH']}:/usr/sbin:/sbin"


class Process:
    """A shell command, with all that it starts, and the lines that they print."""

    all = []

    def __init__(self, command, **options):
        self.name = command
        self.lines = []
        self.n_read = 0
        self.has_ended = False
        self.change = threading.Condition()
        self.process = subprocess.Popen(
            ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True, **options)
        Process.all.append(self)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.process.stdout:
            with self.change:
                self.lines.append(line.rstrip("\n"))
                self.change.notify_all()
        with self.change:
            self.has_ended = True
            self.change.notify_all()

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def expect(self, *texts):
        """The next line that has one of these texts; those before it are done with."""
        deadline = time.monotonic() + LIMIT
        with self.change:
            while True:
                for i in range(self.n_read, len(self.lines)):
                    if any(text in self.lines[i] for text in texts):
                        self.n_read = i + 1
                        return self.lines[i]
                left = deadline - time.monotonic()
                if self.has_ended or left <= 0:
                    fail(f'{self.name}: no "{texts[0]}"')
                self.change.wait(left)

    def end(self, number=signal.SIGTERM):
        """The exit code of the shell."""
        if not self.process.stdin.closed:
            self.process.stdin.close()
        if number:
            os.killpg(self.process.pid, number)
        try:
            code = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            fail(f"{self.name} does not end")
        self.thread.join(LIMIT)
        Process.all.remove(self)
        return code


def run(command, expect=0):
    """A command that ends by itself; its output."""
    process = Process(command)
    process.process.stdin.close()
    code = process.end(number=None)
    if expect is not None and code != expect:
        fail(f"{command}: exit code {code}:\n" + "\n".join(process.lines))
    return "\n".join(process.lines)


class Guest(Process):
    """See play_guest.c."""

    def __init__(self, program, path, cid, *ports):
        super().__init__(f"exec {program} {path} {cid}")
        self.expect("ready")
        for port in ports:
            self.say(f"listen {port}")
            self.expect(f"listening {port}")

    def connect(self, port, cid=2):
        self.say(f"connect {cid} {port}")
        return self.expect("connected", "refused") == "connected"

    def end(self, number=None):
        code = super().end(number)
        if code != 0:
            fail(f"the guest ends with {code}")
        return code
