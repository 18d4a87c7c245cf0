"""Files on a device behind SSH: named by their content, sent once, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import asyncssh

from prune2deploy import progress
from prune2deploy.errors import DeviceError

_PART_BYTES = 1 << 20
_ATTEMPTS = 3
_SILENCE_S = 60.0  # a part that takes longer than this will not come any more

Digests = Callable[[list[str]], Awaitable[dict[str, "str | None"]]]


@dataclass
class RemoteFiles:
    """The folder of a device where models are kept between measurements."""

    name: str
    home: PurePosixPath
    folder: PurePosixPath
    _sftp: asyncssh.SFTPClient

    @classmethod
    async def open(
        cls, name: str, connection: asyncssh.SSHClientConnection, folder: str
    ) -> RemoteFiles:
        """Make the folder if it is not there.

        Raises:
            DeviceError: no file transfer, or the folder cannot be made.
        """
        try:
            sftp = await connection.start_sftp_client()
            home = PurePosixPath(str(await sftp.realpath(".")))
        except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as err:
            raise DeviceError(
                f"Device '{name}': its sshd has no file transfer ({err}). Enable it there with the "
                "line 'Subsystem sftp internal-sftp' in /etc/ssh/sshd_config."
            ) from err
        where = home / folder[2:] if folder.startswith("~/") else home / folder
        try:
            await sftp.makedirs(str(where), exist_ok=True)
        except asyncssh.SFTPError as err:
            raise DeviceError(
                f"Device '{name}': cannot make the folder {where} ({err.reason}). Name another one "
                "as `folder` in devices.yaml."
            ) from err
        return cls(name, home, where, sftp)

    async def put_small(self, name: str, content: bytes) -> str:
        """Have a small file there with exactly this content; returns its path."""
        path = str(self.folder / name)
        if await self._read(path) == content:
            return path
        part = f"{path}.{secrets.token_hex(4)}.part"  # each sender has its own
        try:
            async with self._sftp.open(part, "wb") as file:
                await file.write(content)
            if await self._read(part) != content:
                raise DeviceError(
                    f"Device '{self.name}': {part} is not what was written to it. Check the disk."
                )
            await self._sftp.posix_rename(part, path)
        except asyncssh.SFTPError as err:
            raise await self._failed(err, part, len(content)) from err
        return path

    async def _read(self, path: str) -> bytes | None:
        try:
            async with self._sftp.open(path, "rb") as file:
                content: bytes = await file.read()
                return content
        except asyncssh.SFTPNoSuchFile:
            return None

    async def put(self, path: Path, digests: Digests) -> str:
        """Have this file there, under the name of its content; returns its path there.

        What a broken connection left is gone on with. The device itself computes the hash of what
        arrived, and only then the file gets its name.

        digests: hashes of files there, None where there is none.
        """
        wanted = await asyncio.to_thread(_sha256, path)
        final = str(self.folder / f"{wanted}{path.suffix}")
        part = f"{final}.part"
        for _ in range(_ATTEMPTS):  # what an older one left may be damaged: then from the start
            there = await digests([final, part])
            if there[final] == wanted:
                return final
            try:
                if there[part] != wanted:
                    await self._send(path, part)
                    there = await digests([part])
                if there[part] == wanted:
                    await self._sftp.posix_rename(part, final)
                    return final
                await self._sftp.remove(part)
            except asyncssh.SFTPNoSuchFile:
                continue  # somebody else sent the same file at the same time, and was faster
            except asyncssh.SFTPError as err:
                raise await self._failed(err, part, path.stat().st_size) from err
        raise DeviceError(
            f"Device '{self.name}': {path} arrived damaged again and again. Check its disk and "
            "the network."
        )

    async def get(self, path: str, target: Path, wanted: str | None) -> None:
        """Copy a file from there to here, and compare its hash with `wanted`."""
        part = target.with_name(f"{target.name}.part")
        with progress.task(f"Fetching {target.name} from {self.name}"):
            await self._sftp.get(path, str(part))
        if await asyncio.to_thread(_sha256, part) != wanted:
            part.unlink()
            raise DeviceError(f"Device '{self.name}': {path} arrived damaged. Run it again.")
        part.replace(target)

    async def _send(self, path: Path, part: str) -> None:
        total = path.stat().st_size
        try:
            there = (await self._sftp.stat(part)).size or 0
        except asyncssh.SFTPNoSuchFile:
            there = 0
        if there > total:
            await self._sftp.remove(part)
            there = 0
        with progress.task(f"Sending {path.name} to {self.name}", total) as shown:
            shown.advance(there)
            # Never emptied: who sends the same file at the same time writes the same bytes.
            flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT
            async with self._sftp.open(part, flags, encoding=None) as file:
                with path.open("rb") as source:
                    source.seek(there)
                    while content := source.read(_PART_BYTES):
                        await asyncio.wait_for(file.write(content, there), _SILENCE_S)
                        there += len(content)
                        shown.advance(len(content))

    async def _failed(self, err: asyncssh.SFTPError, part: str, size: int) -> DeviceError:
        """Say what a refused write means; the server's own word for it is just "Failure"."""
        free = None
        try:
            found = await self._sftp.statvfs(str(self.folder))
            free = found.bavail * found.frsize
            if free < _PART_BYTES:
                await self._sftp.remove(part)
        except asyncssh.SFTPError:
            pass
        except (OSError, asyncssh.Error):
            return DeviceError(f"Device '{self.name}': the connection was lost ({err.reason}).")
        if free is not None and free < max(_PART_BYTES, size):
            return DeviceError(
                f"Device '{self.name}': the disk is full: {size / 1e6:.1f} MB were to go to "
                f"{self.folder}, {free / 1e6:.1f} MB are free. Make room there, or name another "
                "`folder` in devices.yaml."
            )
        return DeviceError(
            f"Device '{self.name}': cannot write to {self.folder} ({err.reason}). Check its rights."
        )


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(_PART_BYTES):
            found.update(part)
    return found.hexdigest()
