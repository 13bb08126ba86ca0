"""The real hub client, against a hub on localhost: what is asked for, what is written, what is refused."""

import json
import os
import subprocess

import pytest

from hub_server import COMMIT, hub_server
from stopwise.network.loading import prepare_model
from warm import executable

# The client reads its settings once, when it is imported: what a fork has of it is forgotten.
SCRIPT = """
import json, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
    del sys.modules[name]
from huggingface_hub import constants
assert constants.ENDPOINT == sys.argv[3] and not constants.HF_HUB_OFFLINE
from stopwise.network.loading import load_model, model_fingerprint
answers = []
for source, revision in json.loads(sys.argv[1]):
    try:
        answers.append(model_fingerprint(load_model(source, revision=revision, assets=sys.argv[2])[0]))
    except ValueError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def ask(address, assets, *wanted):
    """Load models in a process of its own, with a hub of its own, and return fingerprints or messages."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [executable(), "-c", SCRIPT, json.dumps(wanted), str(assets), address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = prepare_model("pico-gpt2", tmp_path_factory.mktemp("served"))
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    return folder


@pytest.mark.slow
def test_a_model_is_fetched_once_without_pickles_or_code_and_held_at_its_commit(folder, tmp_path):
    with hub_server(folder) as (address, requests):
        first, second, other, nobody = ask(
            address, tmp_path, ("owner/name", "main"), ("owner/name", None), ("owner/name", "v9"), ("owner/none", None)
        )
        asked = list(requests)
    assert first == second
    assert len(first) == 64
    assert other == "model.revision: the hub has no revision 'v9' of 'owner/name'"
    assert nobody == "model.source: the hub has no public model 'owner/none'"
    assert sum("model.safetensors" in request and request.startswith("GET") for request in asked) == 1
    assert not any(request.endswith((".bin", ".py")) for request in asked)
    held = tmp_path / "models" / "owner--name"
    assert sorted(path.name for path in held.rglob("*")) == [
        "config.json", "generation_config.json", "model.safetensors", "resolved.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert json.loads((held / "resolved.json").read_text())["commit"] == COMMIT
    # The server is gone: what is held needs none, what is not gives one clear line.
    again, gone = ask(address, tmp_path, ("owner/name", COMMIT), ("owner/new", None))
    assert again == first
    assert gone.startswith("model.source: 'owner/new' is not in the assets folder and the hub cannot be reached (")
    assert "\n" not in gone
