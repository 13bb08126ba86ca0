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


# A job in a process of its own: it writes a table, reads it back, and says which libraries it has imported.
JOB = """
import json, sys
from types import SimpleNamespace
from stopwise.artifacts import tables
from stopwise.pipeline.job import Job

output, given = sys.argv[1], {"rule": "spectrum", "log": [], "output": [sys.argv[1]], "input": [], "threads": 1}
with Job(SimpleNamespace(**given, wildcards={"seed": "0"}, params={})) as job:
    job.write(output, [{"n": 16, "index": 1, "eigenvalue": 1.5, "coefficient": 0.25, "fitted": 0.5}], "spectrum")
    table = tables.read_table(output, "spectrum")
    before = "pandas" in sys.modules
    frame = table.to_pandas()
    again = tables.pa.Table.from_pandas(frame, preserve_index=False)
    print(json.dumps([before, "pandas" in sys.modules, table.to_pylist() == again.to_pylist(), table.num_rows]))
"""


def test_a_job_that_writes_and_reads_a_table_imports_no_pandas_and_may_still_make_data_frames(tmp_path):
    command = [sys.executable, "-c", JOB, str(tmp_path / "spectrum.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[false, true, true, 1]", done.stderr


def test_a_process_that_has_pandas_keeps_it_known_to_pyarrow():
    code = "import pandas as pd, pyarrow as pa; from stopwise.pipeline.start_up import arrow_without_pandas\n"
    code += "arrow_without_pandas()\nprint(pa.array(pd.Series(['x', 'y'], dtype='category')).type)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dictionary<")
