"""devices.yaml: which file counts, what is said of slips, and writing without losing comments."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prune2deploy.devices import (
    LocalSettings,
    SshSettings,
    add_device,
    file,
    file_of,
    load_devices,
    set_key,
)
from prune2deploy.devices.file import read_devices
from prune2deploy.errors import DeviceError

PI = "devices:\n  pi:\n    kind: ssh\n    host: raspberrypi.local\n"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes the working folder's devices.yaml; the user has none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(file, "user_file", lambda: tmp_path / "config" / "devices.yaml")

    def put(text: str) -> Path:
        path = tmp_path / "devices.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return put


def message(path: Path) -> str:
    with pytest.raises(DeviceError) as caught:
        read_devices(path)
    return str(caught.value)


def test_without_a_file_there_is_this_machine(write: Write) -> None:
    assert load_devices() == {"local": LocalSettings()}
    assert file_of("local") is None


def test_the_working_folder_counts_more_than_the_users_file(write: Write, tmp_path: Path) -> None:
    own = write("devices: {pi: {kind: ssh, host: here}, local: {kind: local, threads: 4}}")
    users = tmp_path / "config" / "devices.yaml"
    users.parent.mkdir()
    users.write_text("devices: {pi: {kind: ssh, host: there}, orin: {kind: ssh, host: o}}")
    devices = load_devices()
    assert devices["pi"] == SshSettings(kind="ssh", host="here")
    assert devices["local"].threads == 4
    assert set(devices) == {"local", "pi", "orin"}
    assert [file_of(name) for name in ("pi", "orin", "nobody")] == [own, users, None]


def test_relative_paths_are_seen_from_the_file_and_a_tilde_is_home(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    path = write(PI + "    key: keys/id\n    known_hosts: ~/hosts\n")
    found = read_devices(path)["pi"]
    assert isinstance(found, SshSettings)
    assert (found.key, found.known_hosts) == (tmp_path / "keys/id", Path("/home/me/hosts"))


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (PI + "    prot: 22\n", 5, "devices.pi.prot: unknown key. Did you mean 'port'?"),
        (PI + "    port: 0\n", 5, "devices.pi.port: should be greater than or equal to 1, found 0"),
        (PI + "    cores: [0, -1]\n", 5, "devices.pi.cores.1: should be greater"),
        (PI + "    runtime: ort\n", 5, "devices.pi.runtime: should be"),
        (PI + "    host: other\n", 5, "devices.pi.host: is written twice, first on line 4"),
        ("devices:\n  pi: {kind: ssh}\n", 2, "devices.pi.host: missing. Name or address"),
        ("devices:\n  pi: raspberry\n", 2, "devices.pi: expected keys such as kind and host"),
        ("devices:\n  pi: {host: a}\n", 2, "devices.pi: kind should be local or ssh, found None"),
        ("devices:\n  pi: {kind: [ssh]}\n", 2, "devices.pi: kind should be local or ssh"),
        ("devices:\n  p i: {kind: local}\n", 2, "a name is made of letters"),
        ("devices:\n  local: {kind: ssh, host: a}\n", 2, "'local' is this machine"),
        ("devices:\n\tpi: {}\n", 2, "not valid YAML.*not tabs"),
    ],
)
def test_a_slip_is_told_with_file_line_and_key(
    write: Write, text: str, line: int, said: str
) -> None:
    path = write(text)
    with pytest.raises(DeviceError, match=rf"(?m)^{path}:{line}: .*{said}"):
        read_devices(path)


def test_all_slips_are_told_at_once(write: Write) -> None:
    told = message(write(PI + "    port: x\n    folder: ''\n"))
    assert [line.split(": ")[1] for line in told.splitlines()] == [
        "devices.pi.port",
        "devices.pi.folder",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pi: {kind: ssh}\n", "expected one key, 'devices', found pi"),
        ("- pi\n", "expected one key, 'devices'"),
        ("devices: [pi]\n", "one entry per name"),
    ],
)
def test_another_shape_is_told(write: Write, text: str, said: str) -> None:
    assert said in message(write(text))


def test_a_file_in_another_encoding_is_told(write: Write) -> None:
    path = write("")
    path.write_bytes(b"# \xff\n")
    assert "cannot be read" in message(path)


ENTRY = {"kind": "ssh", "host": "orin", "cores": [2, 3], "folder": "a: b #c"}


@pytest.mark.parametrize(
    "before",
    [
        "",
        "# mine\n",
        "devices:\n",
        "devices:\n  # none yet",
        "# Übung\n" + PI + "    # the end\n",
        PI.rstrip("\n"),
        PI.replace("  ", "    "),
        "devices:\n- pi\n".replace("- pi", " pi:\n   kind: ssh\n   host: x"),
    ],
)
def test_adding_keeps_what_is_there(write: Write, before: str) -> None:
    path = write(before)
    known = read_devices(path)
    add_device(path, "orin", ENTRY)
    added = SshSettings(kind="ssh", host="orin", cores=(2, 3), folder="a: b #c")
    assert read_devices(path) == {**known, "orin": added}
    assert path.read_text(encoding="utf-8").startswith(before)


def test_a_file_is_made_for_the_first_device(tmp_path: Path) -> None:
    path = tmp_path / "new" / "devices.yaml"
    add_device(path, "orin", {"kind": "ssh", "host": "orin"})
    assert path.read_text() == "devices:\n  orin:\n    kind: ssh\n    host: orin\n"
    assert [one.name for one in path.parent.iterdir()] == ["devices.yaml"]


@pytest.mark.parametrize(
    "before",
    [
        "devices: {pi: {kind: ssh, host: x}}\n",
        "devices: {}\n",
        PI + "...\n",
    ],
)
def test_a_file_that_cannot_be_added_to_stays_as_it_was(write: Write, before: str) -> None:
    path = write(before)
    with pytest.raises(DeviceError, match=r"(?s)yourself:\n  orin:\n    kind: ssh\n"):
        add_device(path, "orin", ENTRY)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("name", "entry", "said"),
    [
        ("pi", {"kind": "ssh", "host": "x"}, "has a device 'pi' already"),
        ("orin", {"kind": "ssh", "host": "x", "port": 0}, "'orin': port: should be greater"),
        ("orin", {"kind": "ssh"}, "'orin': host: missing"),
        ("o/n", {"kind": "ssh", "host": "x"}, "a name is made of"),
    ],
)
def test_a_wrong_entry_is_not_added(
    write: Write, name: str, entry: dict[str, object], said: str
) -> None:
    path = write(PI)
    with pytest.raises(DeviceError, match=said):
        add_device(path, name, entry)
    assert path.read_text() == PI


def test_rights_and_links_stay(write: Write, tmp_path: Path) -> None:
    path = write(PI)
    path.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    add_device(link, "orin", ENTRY)
    assert link.is_symlink()
    assert set(read_devices(path)) == {"pi", "orin"}
    assert os.stat(path).st_mode & 0o777 == 0o640


SET = "python: ~/venv/bin/python"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (PI, PI.replace("ssh\n", f"ssh\n    {SET}\n")),
        (PI + "    python: python3  # old\n", PI + f"    {SET}  # old\n"),
        (PI + "    python: 'a b'", PI + f"    {SET}"),
        (
            "# all\n" + PI + "    threads: 2\n  z: {kind: local}\n",
            "# all\n" + PI.replace("ssh\n", f"ssh\n    {SET}\n")
            + "    threads: 2\n  z: {kind: local}\n",
        ),
    ],
)  # fmt: skip
def test_one_key_is_set_and_the_rest_stays(write: Write, before: str, after: str) -> None:
    path = write(before)
    set_key(path, "pi", "python", "~/venv/bin/python")
    assert path.read_text() == after


def test_a_key_that_cannot_be_set_is_told_and_the_file_stays(write: Write) -> None:
    before = "devices: {pi: {kind: ssh, host: x}}\n"
    path = write(before)
    with pytest.raises(DeviceError, match=r"Set this yourself, under 'pi':\n    python: p"):
        set_key(path, "pi", "python", "p")
    assert path.read_text() == before
