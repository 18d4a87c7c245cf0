"""A device that is reached over SSH. Nothing is installed there: files travel, the probe runs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shlex
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
from typing_extensions import Self

from prune2deploy.devices.base import Answer, Job, Report
from prune2deploy.devices.bundle import probe_bytes
from prune2deploy.devices.following import (
    MAX_ANSWER,
    MAX_LINE,
    Follower,
    job_line,
    read_answer,
)
from prune2deploy.devices.settings import SshSettings
from prune2deploy.devices.ssh_connection import connect, connection_lost
from prune2deploy.devices.ssh_files import RemoteFiles
from prune2deploy.errors import DeviceError

T = TypeVar("T")
_GRACE_S = 3.0
_FILES_LIMIT_S = 300.0
_NOT_FOUND = (126, 127)  # what a shell ends with that cannot start a program


class SshDevice:
    """A machine behind an sshd. The connection lives on a thread of its own, with its own loop."""

    def __init__(self, name: str, settings: SshSettings) -> None:
        self.name = name
        self._settings = settings

    @property
    def settings(self) -> SshSettings:
        return self._settings

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._connection = self._wait(connect(self.name, self.settings))
            try:
                self._wait(self._prepare())
            except BaseException:
                self._wait(self._hang_up())
                raise
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._wait(self._hang_up())
        finally:
            self._stop()

    def place(self, path: Path) -> str:
        return self._wait(self._place(path))

    def fetch(self, path: str, target: Path) -> None:
        self._wait(self._fetch(path, target))

    def run_probe(self, job: Job, *, time_limit_s: float, report: Report) -> Answer:
        return self._wait(self._run(job, time_limit_s, report))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the loop do it; Ctrl-C here ends it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                with contextlib.suppress(BaseException):
                    future.result(_GRACE_S * 2)
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _hang_up(self) -> None:
        self._connection.close()
        with contextlib.suppress(asyncio.TimeoutError, OSError, asyncssh.Error):
            await asyncio.wait_for(self._connection.wait_closed(), _GRACE_S)

    async def _prepare(self) -> None:
        """Have the probe there, byte by byte the one that is here."""
        with connection_lost(self.name):
            self._files = await RemoteFiles.open(self.name, self._connection, self.settings.folder)
            content = probe_bytes()
            name = f"probe-{hashlib.sha256(content).hexdigest()[:16]}.pyz"
            self._probe = await self._files.put_small(name, content)

    async def _place(self, path: Path) -> str:
        with connection_lost(self.name):
            return await self._files.put(path, self._digests)

    async def _fetch(self, path: str, target: Path) -> None:
        with connection_lost(self.name):
            digests = await self._digests([path])
            await self._files.get(path, target, digests[path])

    async def _digests(self, paths: list[str]) -> dict[str, str | None]:
        """Hashes as the device computes them, of files that are there."""
        answer = await self._run(
            {"ask": "files", "paths": paths}, _FILES_LIMIT_S, lambda line: None
        )
        found: dict[str, str | None] = answer["sha256"]
        return found

    async def _run(self, job: Job, time_limit_s: float, report: Report) -> Answer:
        follower = Follower(self.name, report)
        # `exec`: signals are for the probe and not for a shell around it.
        command = "exec " + shlex.join([self._python(), str(self._probe)])
        with connection_lost(self.name, follower):
            process = await self._connection.create_process(command, errors="replace")
            try:
                text = await asyncio.wait_for(
                    _talk(process, job_line(job, time_limit_s), follower), time_limit_s
                )
            except asyncio.TimeoutError as err:
                raise follower.too_long(time_limit_s) from err
            finally:
                await _end(process)
        return self._answer(process, text, follower)

    def _python(self) -> str:
        python = self.settings.python
        if python.startswith("~/"):
            return str(self._files.home / python[2:])
        return python

    def _answer(
        self, process: asyncssh.SSHClientProcess[str], text: str, follower: Follower
    ) -> Answer:
        code = process.returncode
        if code is None:
            raise DeviceError(
                f"Device '{self.name}': the connection ended before the probe did. Check the "
                f"network and run it again. {follower.last_words()}"
            )
        if code in _NOT_FOUND and not text:
            raise DeviceError(
                f"Device '{self.name}': cannot start Python as '{self.settings.python}' there. "
                "Install it (sudo apt-get install python3), or give its path as `python` in "
                f"devices.yaml. {follower.last_words()}"
            )
        return read_answer(self.name, text, code, follower)


async def _talk(process: asyncssh.SSHClientProcess[str], job: str, follower: Follower) -> str:
    """Hand over the job and read to the end; returns what came on standard output."""

    async def errors() -> None:
        line = ""
        while text := await process.stderr.read(MAX_LINE):
            *whole, line = (line + text).split("\n")
            for one in whole:
                follower.line(one)
            if len(line) > MAX_LINE:
                follower.line(line)
                line = ""
        follower.line(line)

    async def answer() -> str:
        parts, size = [], 0
        while text := await process.stdout.read(MAX_LINE):
            parts.append(text)
            size += len(text)
            if size > MAX_ANSWER:
                raise follower.too_large()
        return "".join(parts)

    # Standard input stays open: its end tells the probe that nobody waits any more.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job)
    text, _ = await asyncio.gather(answer(), errors())
    await process.wait_closed()
    return text


async def _end(process: asyncssh.SSHClientProcess[str]) -> None:
    """Make sure that nothing runs on, if the connection still allows that."""
    if process.exit_status is not None or process.exit_signal is not None:
        return
    with contextlib.suppress(OSError, asyncssh.Error):
        process.send_signal("TERM")
    process.stdin.close()  # the probe's own sign to end, should signals not be passed on
    with contextlib.suppress(asyncio.TimeoutError, OSError, asyncssh.Error):
        await asyncio.wait_for(process.wait_closed(), _GRACE_S)
    process.close()
