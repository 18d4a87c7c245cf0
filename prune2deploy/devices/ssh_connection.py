"""Getting a connection, and saying in words why there is none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh

from prune2deploy.devices.following import Follower
from prune2deploy.devices.settings import SshSettings
from prune2deploy.errors import DeviceError

# A host that freezes sends no sign of it: ask, and give up after about 20 s of silence.
_KEEPALIVE_S = 5
_KEEPALIVES_MISSED = 3


async def connect(name: str, settings: SshSettings) -> asyncssh.SSHClientConnection:
    """Log in with keys. ~/.ssh/config, the agent and known_hosts count as they do for ssh.

    Raises:
        DeviceError: it is not reached, its host key is not known or has changed, or it refuses
            the keys.
    """
    if settings.key is not None and not settings.key.expanduser().is_file():
        raise DeviceError(
            f"Device '{name}': there is no key file {settings.key}. Name the private key as `key`, "
            "or leave it out for those of ~/.ssh and the agent."
        )
    try:
        return await asyncio.wait_for(_dial(settings), settings.connect_timeout_s + 5)
    except asyncssh.HostKeyNotVerifiable as err:
        raise DeviceError(f"Device '{name}': {await _host_key(settings)}") from err
    except asyncssh.PermissionDenied as err:
        raise DeviceError(
            f"Device '{name}': {_address(settings)} does not accept these keys "
            f"({err.reason}). Only keys are used, never passwords. Copy yours there with "
            f"'ssh-copy-id {_login(settings)}', name the right one as `key` or in ~/.ssh/config, "
            "or add it to the agent with 'ssh-add'."
        ) from err
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as err:
        raise DeviceError(
            f"Device '{name}': the key {settings.key} cannot be used ({err}). One with a "
            "passphrase goes into the agent first: ssh-add FILE"
        ) from err
    except asyncssh.ConfigParseError as err:
        raise DeviceError(f"Device '{name}': ~/.ssh/config cannot be read ({err}).") from err
    except (TimeoutError, asyncio.TimeoutError) as err:
        raise DeviceError(
            f"Device '{name}': {_address(settings)} gave no answer within "
            f"{settings.connect_timeout_s:g} s. Is it switched on, and in the same network?"
        ) from err
    except socket.gaierror as err:
        raise DeviceError(
            f"Device '{name}': no machine called '{settings.host}' is known ({err.strerror}). "
            "Check `host`, or use its address."
        ) from err
    except (OSError, asyncssh.Error) as err:
        raise DeviceError(
            f"Device '{name}': no connection to {_address(settings)} ({_reason(err)}). Check that "
            "it is switched on and that sshd runs there on that port: sudo systemctl status ssh"
        ) from err


async def _dial(settings: SshSettings) -> asyncssh.SSHClientConnection:
    # An empty tuple is the library's word for "as ~/.ssh/config and the defaults have it".
    key, hosts = settings.key, settings.known_hosts
    if hosts is not None and not hosts.expanduser().is_file():
        trusted: Any = ([], [], [])  # a file that is not there knows nobody
    else:
        trusted = () if hosts is None else str(hosts.expanduser())
    return await asyncssh.connect(
        settings.host,
        port=settings.port or (),
        username=settings.user or (),
        client_keys=() if key is None else [str(key.expanduser())],
        known_hosts=trusted,
        password_auth=False,
        kbdint_auth=False,
        keepalive_interval=_KEEPALIVE_S,
        keepalive_count_max=_KEEPALIVES_MISSED,
        connect_timeout=settings.connect_timeout_s,
        login_timeout=settings.connect_timeout_s,
    )


async def _host_key(settings: SshSettings) -> str:
    """Unknown or changed: two very different things to the user."""
    options = asyncssh.SSHClientConnectionOptions(
        host=settings.host, port=settings.port or (), username=settings.user or ()
    )
    host, port = str(options.host), int(options.port)
    shown = host if port == 22 else f"[{host}]:{port}"
    path = settings.known_hosts or Path("~/.ssh/known_hosts")
    known = False
    with contextlib.suppress(OSError, ValueError):
        entries = asyncssh.read_known_hosts(str(path.expanduser()))
        known = any(entries.match(host, "", port if port != 22 else None)[:3])
    if known:
        return (
            f"the host key of {shown} is not the one in {path}. Either it was set up anew, or "
            "something else answers in its place; nothing was sent. If you know why, remove the "
            f"old key with 'ssh-keygen -R \"{shown}\" -f {path}' and connect once with ssh."
        )
    return (
        f"the host key of {shown} is not in {path}, and none is accepted unseen. Connect once "
        f"with '{_ssh_command(settings)}' and compare the fingerprint it shows with that of "
        "'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' on the device."
    )


@contextlib.contextmanager
def connection_lost(name: str, follower: Follower | None = None) -> Iterator[None]:
    """Turn what the library raises on a broken connection into one message."""
    try:
        yield
    except (asyncssh.SFTPError, asyncssh.Error, OSError) as err:
        said = f" {follower.last_words()}" if follower else ""
        raise DeviceError(
            f"Device '{name}': the connection was lost ({_reason(err)}). What was sent is kept "
            f"there; check the network and run it again.{said}"
        ) from err


def _reason(err: BaseException) -> str:
    return str(getattr(err, "reason", "") or err) or type(err).__name__


def _address(settings: SshSettings) -> str:
    return settings.host if settings.port is None else f"{settings.host} port {settings.port}"


def _login(settings: SshSettings) -> str:
    port = "" if settings.port is None else f"-p {settings.port} "
    return port + (settings.host if settings.user is None else f"{settings.user}@{settings.host}")


def _ssh_command(settings: SshSettings) -> str:
    hosts = settings.known_hosts
    return "ssh " + ("" if hosts is None else f"-o UserKnownHostsFile={hosts} ") + _login(settings)
