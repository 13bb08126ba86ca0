"""Put the library on the path, for environments that hold the dependencies only, and re-export `Job`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from stopwise.pipeline.job import Job, peak_mb, use_device

__all__ = ["Job", "peak_mb", "use_device"]
