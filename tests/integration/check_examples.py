#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Every example of the manual pages is run as it stands there, or stands here with the
reason why it is not.

    check_examples.py VSOCKD VSOCKCTL PLAY-GUEST SOURCE-ROOT

An example is what stands between .Bd -literal and .Ed, or behind .Dl, and has lines
that begin with a prompt; and each block of vsockd.yaml(5). A guest's commands are played
by the test front-end. With MUST_WORK=1 in the environment what cannot be run is a failure.
"""

import grp
import http.server
import os
import pwd
import re
import shutil
import socket
import stat
import sys
import threading
import time

sys.dont_write_bytecode = True
import surroundings
from surroundings import Guest, Process, fail, run

PROMPT = re.compile(r"^(\$|#|host\$|guest\$) ")


class Example:
    def __init__(self, page, lines):
        self.page = page
        self.lines = [line.replace("\\e", "\\").replace("\\&", "") for line in lines]

    def first(self):
        return self.lines[0]

    def commands(self):
        """Without prompts, each as one text; what is typed into one or printed is no command."""
        found, goes_on = [], False
        for line in self.lines:
            if goes_on:
                found[-1] += "\n" + line
            elif PROMPT.match(line):
                found.append(PROMPT.sub("", line, count=1))
            else:
                continue
            goes_on = line.endswith("\\")
        return found


def read_examples(root):
    examples = []
    for name in sorted(os.listdir(f"{root}/man")):
        if not re.search(r"\.[1-8]$", name):
            continue
        block = None
        with open(f"{root}/man/{name}") as page:
            for line in page.read().splitlines():
                if line.startswith(".Bd -literal"):
                    block = []
                elif line == ".Ed" and block is not None:
                    examples.append(Example(name, block))
                    block = None
                elif block is not None:
                    block.append(line)
                elif line.startswith(".Dl "):
                    examples.append(Example(name, [line[4:]]))
    return [e for e in examples if e.page == "vsockd.yaml.5" or any(map(PROMPT.match, e.lines))]


# ---- what examples need around them

VMS = ("--vm guest-cid=4,socket=/run/vm/vhost4.socket,uds-path=/run/vm/vm4.vsock "
       "--vm guest-cid=3,socket=/run/vm/vhost3.socket,uds-path=/run/vm/vm3.vsock "
       "--control /run/vsockd/control --metrics /run/vsockd/metrics")


def vsockd(options=VMS):
    return ready(Process("exec vsockd " + options))


def ready(process, n_vms=None):
    process.expect("ready: " if n_vms is None else f"ready: {n_vms} VM")
    return process


def guest(cid, *ports):
    return Guest(PLAY_GUEST, f"/run/vm/vhost{cid}.socket", cid, *ports)


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            return f"{program} is not installed"
    return None


# ---- each example, by the page and the begin of its first line; a reason: it was not run


def with_qemu(example):
    start, vmm = example.commands()
    if need("qemu-system-x86_64"):
        return need("qemu-system-x86_64")
    daemon = ready(Process(start.rstrip("& ") + " & wait"))
    # "..." is everything else that a VM has.
    machine = Process("exec " + vmm.replace(" ...", " -display none -nodefaults -S"))
    daemon.expect("vm=4 info: front-end connected")
    machine.end()
    daemon.end()


def several_vms(example):
    daemon = ready(Process("exec " + example.commands()[0]), n_vms=2)
    daemon.end()


def by_root_for_kvm(example):
    if not surroundings.may_become_others():
        return "only root becomes another user"
    daemon = ready(Process("exec " + example.commands()[0]))
    found = os.stat("/run/vm/vhost4.socket")
    if (stat.S_IMODE(found.st_mode), pwd.getpwuid(found.st_uid).pw_name,
            grp.getgrgid(found.st_gid).gr_name) != (0o660, "vsockd", "kvm"):
        fail("the socket is not 660, vsockd, kvm")
    daemon.end()


def web_and_ssh(example):
    daemon = ready(Process("exec " + example.commands()[0]))
    player = Guest(PLAY_GUEST, "/run/vm/vhost4.socket", 3, 22)
    server = http.server.HTTPServer(("127.0.0.1", 8000), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if not player.connect(8000):
        fail("the guest does not reach the web server")
    player.say("close")
    player.expect("ended")
    if player.connect(8001):
        fail("the guest reaches more than the web server")
    with socket.create_connection(("127.0.0.1", 2222), surroundings.LIMIT) as ssh:
        player.expect("accepted 22")
        ssh.sendall(b"hello\n")
        if ssh.recv(16) != b"hello\n":
            fail("port 2222 is not the guest's port 22")
    server.shutdown()
    server.server_close()
    player.end()
    daemon.end()


def a_line_to_the_guest(example):
    if need("socat"):
        return need("socat")
    daemon = vsockd()
    player = guest(4, 1234)
    answer = run(example.commands()[0])
    if not re.fullmatch(r"OK \d+\nhello", answer):
        fail(f"answered: {answer}")
    player.end()
    daemon.end()


def by_hand(example):
    if need("ncat"):
        return need("ncat")
    daemon = vsockd()
    player = guest(4, 1234)
    command, typed, printed = example.lines
    client = Process("exec " + PROMPT.sub("", command))
    client.say(typed)
    if not re.fullmatch(re.sub(r"\d+", r"\\d+", printed), client.expect("OK")):
        fail("another answer than the page has")
    client.end()
    player.end()
    daemon.end()


def a_program_for_the_guest(example):
    if need("socat"):
        return need("socat")
    daemon = vsockd()
    player = guest(4)
    host, of_guest = example.commands()
    server = Process("exec " + host)
    cid, port = map(int, re.search(r"VSOCK-CONNECT:(\d+):(\d+)", of_guest).groups())
    # It does not say when it listens; each question waits for its answer.
    deadline = time.monotonic() + surroundings.LIMIT
    while not player.connect(port, cid):
        if time.monotonic() > deadline:
            fail("the guest does not reach the program")
    player.expect("got ")
    server.end()
    player.end()
    daemon.end()


def control_for_kvm(example):
    if not surroundings.may_become_others():
        return "only root becomes another user"
    start, status = example.commands()
    daemon = ready(Process("exec " + start.replace(
        " ...", " --socket /run/vm/vhost4.socket --uds-path /run/vm/vm4.vsock")))
    if "waiting" not in run(status):
        fail("no VM that waits")
    daemon.end()


def ssh_without_network(example):
    if need("ssh"):
        return need("ssh")
    daemon = vsockd()
    player = guest(4, 22)
    client = Process(example.commands()[0].replace("ssh ", "ssh -o BatchMode=yes ", 1))
    player.expect("accepted 22")
    player.expect("got SSH-2.0-")  # and gets that back, which is a server to it
    client.end()
    player.end()
    daemon.end()


def scrape(example):
    if need("curl"):
        return need("curl")
    command = example.commands()[0]
    by_tcp = re.search(r"127\.0\.0\.1:\d+", command)
    if by_tcp and "built without" in run(f"vsockd {VMS} --metrics-http ?", expect=64):
        return "built without libmicrohttpd"
    daemon = vsockd(VMS + (f" --metrics-http {by_tcp.group()}" if by_tcp else ""))
    if not run(command + " --silent").endswith("# EOF"):
        fail("no metrics")
    daemon.end()


def one_more_vm(example):
    with open("/run/vm/vsockd.yaml", "w") as file:
        file.write("control: /run/vsockd/control\nvms:\n- guest-cid: 4\n"
                   "  socket: /run/vm/vhost4.socket\n  uds-path: /run/vm/vm4.vsock\n")
    daemon = vsockd("--config /run/vm/vsockd.yaml")
    run(example.commands()[0])
    if not re.search(r"^ *7 +waiting", run("vsockctl status"), re.M):
        fail("VM 7 is not served")
    daemon.end()


def capture(example):
    """Wireshark has windows; what it gets is looked at in its place."""
    daemon = vsockd()
    surroundings.use_programs(wireshark="sh -c 'head -c 4' wireshark")
    process = Process(example.commands()[0] + " | od -An -tx4")
    player = guest(4)
    player.connect(99)
    process.expect("a1b2c3d4", "a1b23c4d")
    process.end()
    player.end()
    daemon.end()


def the_time_for_the_guest(example):
    daemon = vsockd()
    player = guest(4)
    listener = Process("exec " + example.commands()[0])
    daemon.expect(": listen")
    if not player.connect(13):
        fail("nobody listens for the guest")
    player.expect("got ")
    listener.end()
    player.end()
    daemon.end()


def an_end_to_a_connection(example):
    daemon = vsockd()
    player = guest(4, 1234)
    listing, kill = example.commands()
    client = Process("exec vsockctl connect 4 1234")
    player.expect("accepted 1234")
    name = re.search(r"^ *(4:\d+) ", run(listing), re.M).group(1)
    # The number is that of the connection, and another one each time.
    run(re.sub(r"4:\d+", name, kill))
    player.expect("ended")
    client.end(number=None)
    player.end()
    daemon.end()


def replace(example):
    daemon = vsockd()
    player = guest(3, 1234)
    for command in example.commands():
        run(command)
    daemon.expect("vm=3 ")
    player.end()
    daemon.end()


PEER_FILE = """vms:
    - guest_cid: 3
      socket: /run/vm/vhost3.socket
      uds_path: /run/vm/vm3.vsock
      tx_buffer_size: 65536
      queue_size: 1024
      groups: group1+groupA
"""


def in_directory_of_peer(command):
    with open("/run/vm/vsock.yaml", "w") as file:
        file.write(PEER_FILE)
    return "cd /run/vm && exec " + command


def check_of_peers_file(example):
    if "vm 3: " not in run(in_directory_of_peer(example.commands()[0])):
        fail("the file is not understood")


def start_with_peers_file(example):
    ready(Process(in_directory_of_peer(example.commands()[0])), n_vms=1).end()


def look_at_what_was_moved(example):
    start, *looks = example.commands()
    daemon = ready(Process(in_directory_of_peer(start)))
    player = guest(3, 1234)
    client = Process("exec vsockctl connect 3 1234")
    player.expect("accepted")
    for look in looks:
        if not re.search(r"^ *3\b", run(look), re.M):
            fail(f"{look}: not a word of VM 3")
    client.end()
    player.end()
    daemon.end()


def printed_policy(example):
    if not run(example.commands()[0]).endswith(" system calls"):
        fail("no policy")


def checked_file(example):
    text = "\n".join(example.lines) + "\n"
    with open("/run/vm/example.yaml", "w") as file:
        file.write(text)
    n_served = len(re.findall(r"^vm ", run("vsockd --check-config /run/vm/example.yaml"), re.M))
    if n_served != len(re.findall(r"guest.cid:", text)):
        fail("other VMs than the example shows")


RUN = {
    ("vsockd.8", "$ vsockd --guest-cid 4"): with_qemu,
    ("vsockd.8", "$ vsockd \\"): several_vms,
    ("vsockd.8", "# vsockd --user vsockd"): by_root_for_kvm,
    ("vsockd.8", "$ vsockd --socket /run/vm/vhost4.socket --connect"): web_and_ssh,
    ("vsockd.8", "$ printf 'CONNECT 1234"): a_line_to_the_guest,
    ("vsockd.8", "$ ncat -U"): by_hand,
    ("vsockd.8", "host$ socat UNIX-LISTEN"): a_program_for_the_guest,
    ("vsockctl.1", "# vsockd --user vsockd --control"): control_for_kvm,
    ("vsockctl.1", "$ ssh "): ssh_without_network,
    ("vsockctl.1", "$ curl "): scrape,
    ("vsockctl.1", "# vsockctl add 7"): one_more_vm,
    ("vsockctl.1", "$ vsockctl capture 4 - | wireshark"): capture,
    ("vsockctl.1", "$ vsockctl listen 4 13"): the_time_for_the_guest,
    ("vsockctl.1", "$ vsockctl connections 4"): an_end_to_a_connection,
    ("vsockd-migration.7", "$ vsockctl replace 3"): replace,
    ("vsockd-moving.7", "$ vsockd --check-config"): check_of_peers_file,
    ("vsockd-moving.7", "# vsockd --config vsock.yaml --control"): look_at_what_was_moved,
    ("vsockd-moving.7", "# vsockd --config vsock.yaml"): start_with_peers_file,
    ("vsockd-sandbox.7", "$ vsockd --print-policy"): printed_policy,
    ("vsockd-worker.8", "$ vsockd --print-policy"): printed_policy,
    ("vsockd.yaml.5", ""): checked_file,
}

EXCEPTIONS = {
    ("vsockd.8", "$ crosvm run"): "Debian has no crosvm",
    ("vsockd.8", "$ cloud-hypervisor "): "Debian has no cloud-hypervisor",
}


def find(table, example):
    for (page, begin), value in table.items():
        if page == example.page and example.first().startswith(begin):
            return (page, begin), value
    return None, None


def clear():
    """Each example begins in the same directories."""
    for directory in ("/run/vm", "/run/vsockd"):
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)
        if surroundings.may_become_others():
            shutil.chown(directory, "vsockd", "vsockd")


def add_users():
    with open("/etc/passwd", "a") as file:
        file.write("vsockd:x:950:950::/run/vsockd:/usr/sbin/nologin\n")
    with open("/etc/group", "a") as file:
        file.write("vsockd:x:950:\n")
        if not any(group.gr_name == "kvm" for group in grp.getgrall()):
            file.write("kvm:x:951:\n")


def main():
    unused = set(RUN) | set(EXCEPTIONS)
    not_run = []
    n_run = 0
    for example in read_examples(ROOT):
        title = f"{example.page}: {example.first()}"
        key, reason = find(EXCEPTIONS, example)
        if key:
            unused.discard(key)
            print(f"not run: {title}: {reason}")
            continue
        key, function = find(RUN, example)
        if not key:
            fail(f"nobody runs this example, and no exception names it: {title}")
        unused.discard(key)
        clear()
        reason = function(example)
        if reason:
            not_run.append(f"{title}: {reason}")
        else:
            n_run += 1
    for page, begin in sorted(unused):
        fail(f'{page} has no example that begins with "{begin}" any more')
    print(f"{n_run} examples were run")
    if not_run:
        surroundings.skip("\n".join(not_run))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"usage: {sys.argv[0]} VSOCKD VSOCKCTL PLAY-GUEST SOURCE-ROOT")
    VSOCKD, VSOCKCTL, PLAY_GUEST, ROOT = map(os.path.abspath, sys.argv[1:])
    surroundings.enter()
    surroundings.use_programs(vsockd=VSOCKD, vsockctl=VSOCKCTL)
    add_users()
    main()
