#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
What an operator does who knows the manual pages and nothing else: installs, starts the
unit, moves a VM from another back-end, watches a connection, replaces a worker, and
reads why a connection was refused.

    test_operator_steps.py BUILD-ROOT PLAY-GUEST

Each step is a function, named as a claim, and stands on those before it. What it does
is told by a page that was installed; a page that does not tell it any more is a failure.
Of the unit everything counts that can be had without systemd as process 1: its program,
user, capabilities, limits, conditions, readiness and reload.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys

sys.dont_write_bytecode = True
import surroundings
from surroundings import Guest, Process, fail, run

INSTALLED = "/run/installed"
SOCKET, HOST = "/run/vsockd/3.vm", "/run/vsockd/3"

# As the other back-end had it; not a byte of it changes.
PEERS_FILE = f"""vms:
    - guest_cid: 3
      socket: {SOCKET}
      uds_path: {HOST}
      tx_buffer_size: 65536
      queue_size: 1024
      groups: group1+groupA
"""
PEERS_OPTIONS = (f"--guest-cid=3 --socket={SOCKET} --uds-path={HOST} --tx-buffer-size=65536 "
                 "--queue-size=1024 --groups=group1+groupA")


def told_by(page, *patterns):
    """Does the installed page say so?"""
    with open(find_installed(f"share/man/man{page[-1]}/{page}")) as file:
        text = file.read()
    for pattern in patterns:
        if not re.search(pattern, text, re.M):
            fail(f"{page} does not tell: {pattern}")


def find_installed(end):
    for directory, _, names in os.walk(INSTALLED):
        for name in names:
            path = os.path.join(directory, name)
            if path.endswith("/" + end):
                return path
    return fail(f"{end} is not installed")


# ---- what systemd would do


class Unit:
    def __init__(self, name, instance=None):
        self.settings = {}
        self.process = None
        with open(find_installed(f"systemd/system/{name}")) as file:
            for line in file.read().replace("%i", instance or "%i").splitlines():
                key, equals, value = line.partition("=")
                if equals and not line.startswith("#"):
                    self.settings.setdefault(key, []).append(value)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.settimeout(surroundings.LIMIT)
        self.address = f"/run/notify-{instance}"
        if os.path.exists(self.address):
            os.unlink(self.address)
        self.notify.bind(self.address)
        os.chmod(self.address, 0o777)

    def get(self, key):
        return self.settings[key][-1]

    def await_state(self, state):
        while True:
            try:
                told = self.notify.recv(4096).decode()
            except TimeoutError:
                fail(f"no {state} from {self.get('ExecStart')}")
            if state in told.splitlines():
                return told

    def may_start(self):
        return os.path.exists(self.get("ConditionPathExists"))

    def begin(self):
        """As whom it says, with the capabilities that it says."""
        before = []
        if surroundings.may_become_others():
            capabilities = ["+" + name.removeprefix("CAP_").lower()
                            for name in self.get("AmbientCapabilities").split()]
            some = ",".join(["-all", *capabilities])
            before = ["setpriv", f"--reuid={self.get('User')}", f"--regid={self.get('User')}",
                      "--clear-groups", f"--bounding-set={some}", f"--inh-caps={some}",
                      f"--ambient-caps={some}"]
            if self.get("NoNewPrivileges") == "yes":
                before.append("--no-new-privs")
        else:
            before = ["setpriv", "--ambient-caps=-all", "--inh-caps=-all"]
        command = [*before, *shlex.split(self.get("ExecStart"))]
        script = f"umask {self.get('UMask')}; exec {shlex.join(command)}"
        return Process(script, env={"NOTIFY_SOCKET": self.address, "PATH": os.environ["PATH"]})

    def start(self):
        if not self.may_start():
            fail(f"{self.get('ConditionPathExists')} is not there")
        self.process = self.begin()
        if self.get("Type") == "notify":
            self.await_state("READY=1")

    def reload(self):
        run(self.get("ExecReload").replace("$MAINPID", str(self.process.process.pid)))
        self.await_state("RELOADING=1")
        self.await_state("READY=1")

    def stop(self):
        code = self.process.end()
        self.await_state("STOPPING=1")
        if code != 0:
            fail(f"the service ends with {code}")


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def vsockctl(*arguments):
    return run(shlex.join(["vsockctl", *arguments]))


def ask_json(*arguments):
    return json.loads(vsockctl("--json", *arguments))


class Listener:
    """A program on the host that the guest reaches."""

    def __init__(self, port):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(surroundings.LIMIT)
        self.path = f"{HOST}_{port}"
        self.socket.bind(self.path)
        self.socket.listen()
        os.chmod(self.path, 0o777)

    def accept(self):
        accepted, _ = self.socket.accept()
        accepted.settimeout(surroundings.LIMIT)
        return accepted

    def end(self):
        self.socket.close()
        os.unlink(self.path)


# ---- the steps


class Operator:
    def an_operator_installs_programs_units_and_pages(self):
        prefix = os.path.dirname(os.path.dirname(find_installed("sbin/vsockd")))
        target = prefix.removeprefix(INSTALLED)
        if target in ("", "/", "/usr"):
            surroundings.skip(f"the prefix is {target}, over which nothing can be mounted")
        surroundings.mount("installed", target, "tmpfs", 0, "mode=755")
        shutil.copytree(prefix, target, dirs_exist_ok=True, symlinks=True)
        os.environ["PATH"] = f"{target}/sbin:{target}/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
        users, files = find_installed("sysusers.d/vsockd.conf"), find_installed("tmpfiles.d/vsockd.conf")
        if surroundings.may_become_others():
            run(f"systemd-sysusers {users}")
            run(f"systemd-tmpfiles --create {files}")
        else:
            for directory in ("/run/vsockd", "/etc/vsockd"):
                os.makedirs(directory, exist_ok=True)
        for program in ("vsockd", "vsockctl"):
            if not run(f"{program} --version").startswith(program):
                fail(f"{program} does not run from where it was installed")
        for page in ("vsockd.8", "vsockctl.1", "vsockd.yaml.5", "vsockd-moving.7"):
            told_by(page, r"^\.Sh NAME")

    def an_operator_starts_the_unit(self):
        told_by("vsockd.8", r"^\.Ql Type=notify", r"^\.It Fl -control ")
        unit = Unit("vsockd.service")
        if unit.may_start():
            fail("the unit would start without a file")
        write("/etc/vsockd/vsockd.yaml", "control: /run/vsockd/control\nvms:\n  - guest-cid: 9\n"
              "    socket: /run/vsockd/9.vm\n    uds-path: /run/vsockd/9\n")
        unit.start()
        if [(vm["cid"], vm["state"]) for vm in ask_json("status")] != [(9, "waiting")]:
            fail("the VM of the file is not served")
        unit.reload()
        unit.stop()

    def an_operator_moves_a_vm_from_its_file(self):
        told_by("vsockd-moving.7", r"vsockd --check-config vsock.yaml",
                r"vsockd --config vsock.yaml$")
        write("/etc/vsockd/peer.yaml", PEERS_FILE)
        if "vm 3: " not in run("vsockd --check-config /etc/vsockd/peer.yaml"):
            fail("the other back-end's file is not understood")
        unit = Unit("vsockd@.service", "peer")
        unit.start()
        self.talk()
        unit.stop()

    def an_operator_moves_a_vm_by_its_command_line(self):
        told_by("vsockd-moving.7", r"with the same options or the same file")
        before = "" if surroundings.may_become_others() else \
            "setpriv --ambient-caps=-all --inh-caps=-all "
        daemon = Process(f"exec {before}vsockd {PEERS_OPTIONS}")
        daemon.expect("ready: 1 VM")
        self.talk()
        if daemon.end() != 0:
            fail("vsockd does not end well")

    def talk(self):
        """The VMM is started as before; programs on the host do what they did."""
        guest = Guest(PLAY_GUEST, SOCKET, 3, 1234)
        listener = Listener(5000)
        if not guest.connect(5000):
            fail("the guest does not reach a program on the host")
        with listener.accept() as program:
            program.sendall(b"date\n")
            guest.expect("got date")
        guest.expect("ended")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as program:
            program.settimeout(surroundings.LIMIT)
            program.connect(HOST)
            program.sendall(b"CONNECT 1234\nhello\n")
            answer = b""
            while not answer.endswith(b"hello\n"):
                answer += program.recv(64) or fail("the connection ends")
            if not re.fullmatch(rb"OK \d+\nhello\n", answer):
                fail(f"the guest answers {answer}")
        listener.end()
        guest.end()

    def an_operator_watches_a_connection(self):
        told_by("vsockctl.1", r"^\.It Cm connections ", r"^\.It FROM GUEST|FROM GUEST",
                r"^\.It Fl -json")
        told_by("vsockd.yaml.5", r"^\.It Cm control$")
        write("/etc/vsockd/peer.yaml", "control: /run/vsockd/control\n" + PEERS_FILE)
        self.unit = Unit("vsockd@.service", "peer")
        self.unit.start()
        self.guest = Guest(PLAY_GUEST, SOCKET, 3)
        self.listener = Listener(5000)
        if not self.guest.connect(5000):
            fail("the guest does not reach the program")
        self.program = self.listener.accept()
        self.exchange("first")
        found = self.see_connection()
        if found["state"] != "open" or found["from"] != "guest":
            fail(f"vsockctl shows {found}")
        for column in ("ID", "STATE", "FROM GUEST"):
            if column not in vsockctl("connections").splitlines()[0]:
                fail(f"there is no column {column}")

    def exchange(self, text):
        self.guest.say(f"send {text}")
        line = f"{text}\n".encode()
        answer = b""
        while len(answer) < len(line):
            answer += self.program.recv(64) or fail("the connection ends")
        if answer != line:
            fail(f"the guest sent {line}, {answer} came")
        self.program.sendall(line)
        self.guest.expect(f"got {text}")

    def see_connection(self):
        found = ask_json("connections", "3")
        if len(found) != 1:
            fail(f"there is one connection, vsockctl shows {found}")
        return found[0]

    def an_operator_replaces_a_worker(self):
        told_by("vsockctl.1", r"^\.It Cm replace ")
        worker = ask_json("status")[0]["worker_pid"]
        name = self.see_connection()["id"]
        vsockctl("replace", "3")
        if ask_json("status")[0]["worker_pid"] in (worker, None):
            fail("the worker is the same")
        self.exchange("second")
        if self.see_connection()["id"] != name:
            fail("the connection is another one")

    def refuse(self, port, reason):
        if self.guest.connect(port):
            fail(f"the guest reaches port {port}")
        line = self.unit.process.expect(f"port {port}: ")
        if not re.fullmatch(rf"vm=3 \w+: guest refused: .*port {port}: {reason}", line):
            fail(f"the log says: {line}")

    def an_operator_reads_why_a_connection_was_refused(self):
        told_by("vsockd.8", r"^\.Dl vm=4 warning: ", r"^\.It Fl -deny-outgoing ")
        told_by("vsockctl.1", r"vsockd_refusals_total", r"vsockd_connects_total", r"^\.It Cm reload")
        self.refuse(6000, "No such file or directory")
        write("/etc/vsockd/peer.yaml", "control: /run/vsockd/control\n" + PEERS_FILE +
              "      deny-outgoing: 7000\n")
        if "changed" not in vsockctl("reload"):
            fail("the reload says nothing of the change")
        self.refuse(7000, "that port is denied to the guest")
        metrics = vsockctl("metrics")
        for line in ('vsockd_connects_total{vm="3",from="guest",result="refused"} 2',
                     'vsockd_refusals_total{vm="3",reason="outgoing_port"} 1'):
            if line not in metrics.splitlines():
                fail(f"vsockctl metrics does not say: {line}")
        self.exchange("third")

    def an_operator_stops_the_unit(self):
        self.program.close()
        self.guest.expect("ended")
        self.listener.end()
        self.guest.end()
        self.unit.stop()


def main():
    operator = Operator()
    steps = [name for name in vars(Operator) if name.startswith("an_operator_")]
    for name in steps:
        getattr(operator, name)()
        print("ok:", name.replace("_", " "), flush=True)
    print(f"{len(steps)} steps")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} BUILD-ROOT PLAY-GUEST")
    BUILD, PLAY_GUEST = map(os.path.abspath, sys.argv[1:])
    surroundings.enter()
    # Where files go is what meson knows; who may read them is what an operator has to say.
    installing = subprocess.run(
        ["meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", INSTALLED],
        capture_output=True, text=True)
    if installing.returncode != 0:
        fail(f"meson install: {installing.stdout}{installing.stderr}")
    main()
