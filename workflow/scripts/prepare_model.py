"""Prepare the configured model once as safetensors, and record what it is."""

import hashlib
import json
from pathlib import Path

from job import Job
from stopwise.artifacts import tables as artifacts
from stopwise.assets.wheels import sha256_of
from stopwise.network.folders import ADAPTER_CONFIG, holds_adapter, prepare_model


def fingerprint(folder: Path, *patterns: str) -> str:
    """Return one digest of the names and bytes of the folder's files that match."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return hashlib.sha256("".join(f"{path.name} {sha256_of(path)}\n" for path in files).encode()).hexdigest()[:16]


with Job(snakemake) as job:
    model, assets = snakemake.params.model, Path(snakemake.output[0]).parents[1]
    trusted = {"trust_remote_code": model["trust_remote_code"]}
    folder = prepare_model(model["source"], assets, revision=model["revision"], **trusted)
    record, digests = {"source": model["source"]}, []
    if holds_adapter(folder):
        from stopwise.network.adapters import base_of

        record["adapter"] = str(folder)
        digests.append(fingerprint(folder, "*.safetensors", ADAPTER_CONFIG))
        folder = prepare_model(base_of(folder), assets, **trusted)
    digests.append(fingerprint(folder, "*.safetensors", "config.json"))
    record |= {
        "folder": str(folder),
        "fingerprint": "-".join(digests),
        "tokenizer": fingerprint(folder, "tokenizer*.json", "special_tokens_map.json"),
    }
    with artifacts.atomic_path(Path(snakemake.output[0])) as temporary:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
