"""An sshd of the tests' own, on the loopback."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.devices import SshSettings


@dataclass
class Sshd:
    """A running sshd, and what can happen to it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert program is not None
        command = [program, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        for _ in range(200):
            with socket.socket() as test:
                if test.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        pytest.skip(f"sshd does not start here: {(self.folder / 'log').read_text()[-500:]}")

    def stop(self) -> None:
        """Stop listening; sessions go too."""
        if self.process is not None:
            self.cut()
            self.process.kill()
            self.process.wait()

    def cut(self) -> None:
        """End every connection as a broken link does: nobody says good-bye."""
        assert self.process is not None
        for pid in descendants(self.process.pid):
            if "sshd" in name_of(pid):
                os.kill(pid, signal.SIGKILL)

    def new_host_key(self) -> None:
        """As after the device was set up anew, or when something else answers."""
        self.stop()
        make_key(self.folder / "host_key")
        self.start()

    def settings(self, **changes: Any) -> SshSettings:
        """Of a device that is this sshd; None leaves a setting out."""
        given = {
            "kind": "ssh",
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "key": self.folder / "id",
            "known_hosts": self.folder / "known_hosts",
            "python": sys.executable,
            "folder": str(self.folder / "on the device"),
            **changes,
        }
        return SshSettings(**{key: value for key, value in given.items() if value is not None})


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def make_key(path: Path) -> None:
    for one in (path, path.with_name(f"{path.name}.pub")):
        one.unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True
    )
