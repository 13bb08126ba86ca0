"""Settings of the whole suite: one thread per process, no network for model hubs, a fixed hypothesis profile.

Fine-tuning writes a checkpoint at every evaluation.
"""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("STOPWISE_CHECKPOINT_SECONDS", "0")  # runs of a second have checkpoints to resume from

from pathlib import Path

import pytest
from hypothesis import settings

import warm
from pipeline import SMALL_CONFIG, TEST_CONFIG, finished_run

settings.register_profile("stopwise", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("stopwise")


def pytest_configure(config):
    """Start one warm Python for all processes of a call with several: it gets ready while they collect."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        os.environ[warm.SHARED] = str(warm.start()[0])


def pytest_collection_modifyitems(items):
    """Run the files that start Snakemake first: they take longest, and no process waits for the last of them alone."""
    slow = {item.path for item in items if item.get_closest_marker("pipeline")}
    items.sort(key=lambda item: item.path not in slow)  # stable: otherwise as collected


@pytest.fixture(scope="module", autouse=True)
def imports_are_not_collected():
    """Spare the collector what is there when a file begins, mostly imported modules: half a second for each Trainer."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def finished_pipeline(tmp_path_factory):
    """Return (folder, run): a checkout in which the pico pipeline has run once from nothing. Copy it to change it.

    All processes of one call of pytest share one run, and so do all calls that name the same folder in STOPWISE_SHARED;
    each process has a copy of its own.
    """
    return finished(tmp_path_factory, TEST_CONFIG)


@pytest.fixture(scope="session")
def finished_small(tmp_path_factory):
    """As ``finished_pipeline``, of the smaller configuration tests/data/small.yaml."""
    return finished(tmp_path_factory, SMALL_CONFIG)


def finished(tmp_path_factory, config):
    """Return (folder, run) of a configuration, run once for all who share the folder of STOPWISE_SHARED."""
    here = tmp_path_factory.getbasetemp()
    shared = os.environ.get("STOPWISE_SHARED") or (here.parent if "PYTEST_XDIST_WORKER" in os.environ else here)
    folder = tmp_path_factory.mktemp("pipeline") / "checkout"
    return folder, finished_run(Path(shared) / "finished", folder, config)
