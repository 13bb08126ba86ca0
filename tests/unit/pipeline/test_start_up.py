"""A job that reads and writes tables starts at once: what it does not call is not imported."""

import subprocess
import sys

# What the jobs between the kernels and the figures import, and what takes seconds to import.
TABLES = """
    merging.agreement merging.pairs stopping.bayes stopping.judging training.prediction
    linearized.guarantee linearized.noise stopping.cross_entropy stopping.leave_one_out linearized.directions
    stopping.stops studies.on_the_path claims.measures claims.verdicts linearized.decay
    artifacts.gram linearized.spectrum_rows report.summary
"""
SLOW = ("torch", "transformers", "pandas", "matplotlib", "mlflow", "scipy.stats", "scipy.optimize", "scipy.linalg")


def test_modules_that_work_on_tables_import_nothing_slow():
    code = f"import sys, importlib\nfor name in {TABLES.split()}: importlib.import_module('stopwise.' + name)\n"
    code += f"print(*(name for name in {SLOW} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
