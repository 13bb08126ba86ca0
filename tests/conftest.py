"""Settings of the whole suite: one thread per process, no network for model hubs, a fixed hypothesis profile."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

settings.register_profile("stopwise", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("stopwise")
