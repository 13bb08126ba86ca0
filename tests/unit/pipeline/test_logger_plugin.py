"""`--logger stopwise` works in an installation, without the test suite's own search path."""

import os
import subprocess
import sys

from pipeline import ROOT


def test_snakemake_finds_the_logger_of_the_installed_project(tmp_path):
    """Snakemake lists the folders of sys.path: an installation by a finder of its own would hide the plugin."""
    code = (
        "from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry as R; print(R().plugins.keys())"
    )
    known = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=known, capture_output=True, text=True)
    assert "'stopwise'" in done.stdout, done.stdout + done.stderr
    assert (ROOT / "src" / "snakemake_logger_plugin_stopwise").is_dir()
