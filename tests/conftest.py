"""Settings of the whole suite: one thread per process, no network for model hubs, a fixed hypothesis profile."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

from pipeline import checkout, snakemake

settings.register_profile("stopwise", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("stopwise")


@pytest.fixture(scope="session")
def finished_pipeline(tmp_path_factory):
    """Return (folder, run): a checkout in which the pico pipeline has run once from nothing. Copy it to change it."""
    folder = checkout(tmp_path_factory.mktemp("pipeline"))
    run = snakemake(folder)
    assert run.code == 0, run.output[-6000:]
    return folder, run
