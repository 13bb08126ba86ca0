"""Access to a model or data set hub: a revision is resolved to a commit once, recorded, and held from then on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stopwise.assets.wheels import AssetError, atomic_folder, hub_folder_name

RESOLVED = "resolved.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 5.0  # seconds: a machine without a network gets its one clear error within ten
# Weights only as safetensors; the rest is configuration and tokenizer files. Code comes only when asked for.
_MODEL_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.txt",
    "tokenizer.model",
    "*.tiktoken",
    "*.jinja",
]


def resolve(kind: str, hub_id: str, revision: str | None, key: str) -> tuple[str, list[str]]:
    """Return the commit that ``revision`` (default ``main``) names now, and the files of that commit.

    ``kind`` is ``model`` or ``dataset``. Raises AssetError naming ``key`` when the hub cannot be reached, or knows no
    such id or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        info = ask(hub_id, revision=revision or "main", timeout=_TIMEOUT)
    except RevisionNotFoundError:
        raise AssetError(f"{_revision_key(key)}: the hub has no revision {revision!r} of {hub_id!r}") from None
    except GatedRepoError:
        raise AssetError(f"{key}: {hub_id!r} asks for an accepted licence and a login") from None
    except RepositoryNotFoundError:
        raise AssetError(f"{key}: the hub has no public {kind} {hub_id!r}") from None
    except Exception as error:
        raise AssetError(
            f"{key}: {hub_id!r} is not in the assets folder and the hub cannot be reached ({_first_line(error)});"
            " fetch it once with a network, or name a local path"
        ) from error
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise AssetError(f"{key}: the hub gave no commit for {hub_id!r} at {revision or 'main'!r}")
    return info.sha, [sibling.rfilename for sibling in info.siblings or []]


def _revision_key(key: str) -> str:
    """Return the key of the revision that stands beside the id's key: model.source has model.revision."""
    return f"{key.rsplit('.', 1)[0]}.revision"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no detail'}"


def held(folder: Path) -> dict[str, Any] | None:
    """Return what ``resolved.json`` in ``folder`` records, or None. Raises AssetError when it cannot be read."""
    path = folder / RESOLVED
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"id": record["id"], "revision": record["revision"], "commit": record["commit"]}
    except (ValueError, KeyError, TypeError) as error:
        raise AssetError(
            f"{path}: damaged record of a hub revision ({error}); remove its folder and run again"
        ) from error


def check_held(record: dict[str, Any], kind: str, hub_id: str, revision: str | None, key: str) -> None:
    """Raise AssetError when ``revision`` names another commit than the recorded one; asks the hub only if it must."""
    wanted = revision or "main"
    if record["id"] != hub_id:
        raise AssetError(f"{key}: the assets folder holds {record['id']!r} where {hub_id!r} was expected")
    if wanted in {record["revision"], record["commit"]}:
        return
    commit = wanted if _COMMIT.fullmatch(wanted) else resolve(kind, hub_id, revision, key)[0]
    if commit != record["commit"]:
        raise AssetError(
            f"{_revision_key(key)}: {hub_id!r} is held at commit {record['commit']} (fetched as"
            f" {record['revision']!r}), but {wanted!r} is commit {commit}; remove its folder in the assets to change"
        )


def fetch_model(hub_id: str, revision: str | None, assets: Path, trust_remote_code: bool = False) -> Path:
    """Return the folder of a hub model, downloading its safetensors at a resolved commit when it is absent.

    A present folder is used without a network. Raises AssetError for a revision that is not the held one, a repository
    without safetensors, or a hub that cannot be reached.
    """
    folder = assets / "models" / hub_folder_name(hub_id, "model.source")
    record = held(folder)
    if record is not None:
        check_held(record, "model", hub_id, revision, "model.source")
        return folder
    from huggingface_hub import snapshot_download

    commit, files = resolve("model", hub_id, revision, "model.source")
    if not any(name.endswith(".safetensors") and "/" not in name for name in files):
        raise AssetError(
            f"model.source: {hub_id!r} has no safetensors weights at {commit}; pickled weights are refused"
        )
    wanted = _MODEL_FILES + (["*.py"] if trust_remote_code else [])
    with atomic_folder(folder) as temporary:
        try:
            snapshot_download(
                hub_id, revision=commit, local_dir=temporary, allow_patterns=wanted, ignore_patterns=["*/*"]
            )
        except Exception as error:
            raise AssetError(f"model.source: {hub_id!r} could not be downloaded ({_first_line(error)})") from error
        shutil.rmtree(temporary / ".cache", ignore_errors=True)
        _record(temporary, hub_id, revision, commit)
    return folder


def snapshot(hub_id: str, revision: str | None = None) -> Path:
    """Return the folder of a hub model in the hub's own cache, downloading its safetensors when they are not there.

    What the cache holds of the revision is used without a network. Raises AssetError as ``fetch_model`` does.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted: dict[str, Any] = {"allow_patterns": _MODEL_FILES, "ignore_patterns": ["*/*"]}
    try:
        held = Path(snapshot_download(hub_id, revision=revision, local_files_only=True, **wanted))
        if any(held.glob("*.safetensors")) and (held / "config.json").is_file():
            return held
    except (LocalEntryNotFoundError, ValueError):
        pass
    commit, files = resolve("model", hub_id, revision, "model.source")
    if not any(name.endswith(".safetensors") and "/" not in name for name in files):
        raise AssetError(
            f"model.source: {hub_id!r} has no safetensors weights at {commit}; pickled weights are refused"
        )
    try:
        return Path(snapshot_download(hub_id, revision=commit, **wanted))
    except Exception as error:
        raise AssetError(f"model.source: {hub_id!r} could not be downloaded ({_first_line(error)})") from error


def cache_folder() -> Path:
    """Return the folder of what was fetched for people outside of a workflow: ``stopwise`` in the home of Hugging Face.

    That home is ``HF_HOME``, else ``huggingface`` in ``XDG_CACHE_HOME``.
    """
    home = (
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    )
    return Path(home).expanduser() / "stopwise"


def _record(folder: Path, hub_id: str, revision: str | None, commit: str) -> None:
    record = {"id": hub_id, "revision": revision or "main", "commit": commit}
    (folder / RESOLVED).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def dataset_folder(source: Mapping[str, Any], key: str) -> str:
    """Return the folder name of one split of a hub data set; raises AssetError for what is not a hub id."""
    config, split = source.get("config"), source.get("split", "train")
    parts = [hub_folder_name(str(source["hub"]), key), *([str(config)] if config else []), str(split)]
    return re.sub(r"[^A-Za-z0-9._-]", "_", "--".join(parts))


def fetch_dataset(source: Mapping[str, Any], assets: Path, key: str) -> Path:
    """Return the Parquet file of one split of a hub data set, fetched at a resolved commit when it is absent.

    ``source`` holds ``hub`` (the id), and optionally ``revision``, ``config`` and ``split`` (default ``train``). Class
    labels with names are written as their names. Raises AssetError as ``fetch_model`` does.
    """
    hub_id, revision = str(source["hub"]), source.get("revision")
    config, split = source.get("config"), source.get("split", "train")
    folder = assets / "datasets" / dataset_folder(source, key)
    record = held(folder)
    if record is not None:
        check_held(record, "dataset", hub_id, revision, key)
        return folder / "rows.parquet"
    commit, _ = resolve("dataset", hub_id, revision, key)
    import datasets

    with atomic_folder(folder) as temporary:
        try:
            rows = datasets.load_dataset(
                hub_id, name=config, revision=commit, split=split, cache_dir=str(temporary / "cache")
            )
        except Exception as error:
            raise AssetError(f"{key}: {hub_id!r} could not be loaded ({_first_line(error)})") from error
        write_named(rows, temporary / "rows.parquet")
        shutil.rmtree(temporary / "cache", ignore_errors=True)
        _record(temporary, hub_id, revision, commit)
    return folder / "rows.parquet"


def write_named(rows: Any, path: Path) -> None:
    """Write a ``datasets.Dataset`` as Parquet, class labels replaced by their names."""
    import datasets

    for column, feature in list(rows.features.items()):
        if isinstance(feature, datasets.ClassLabel):
            names = [feature.int2str(value) if value is not None and value >= 0 else None for value in rows[column]]
            rows = rows.remove_columns(column).add_column(column, names)
    rows.to_parquet(str(path))
