"""A Python that has imported the large libraries already: each program that it runs is a fork of one process.

``executable()`` is a file that is called as ``python`` is, with a script, ``-m MODULE`` or ``-c CODE``, and ``-u``
before it. What it runs has the caller's working folder, environment, standard streams and exit status, and it imports
the project's own modules itself, from where a new Python would. Only what a new process spends seconds on, importing
torch and the like, is spent once.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from functools import cache
from pathlib import Path

PRELOADED = (
    *("numpy", "scipy.linalg", "scipy.optimize", "scipy.special", "scipy.stats", "pandas", "pyarrow.parquet", "yaml"),
    *("matplotlib.pyplot", "torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto"),
    *("transformers.models.llama.modeling_llama", "tokenizers", "safetensors.torch", "snakemake.cli"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "datasets", "transformers.trainer"),
)
CLIENT = """#!{python} -ISE
import json, os, socket, sys
known = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), os.getsid(0), os.getpid()]).encode()
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [len(known).to_bytes(8, "big")], [0, 1, 2])
server.sendall(known)
sys.exit(int(server.recv(8) or b"137"))
"""


SHARED = "STOPWISE_WARM"  # names the warm Python of the processes that one call of pytest starts


def start() -> tuple[Path, subprocess.Popen]:
    """Start a server that ends with this process; return the path of its Python, ready when its socket is there."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    address, stub = folder / "socket", folder / "python"
    stub.write_text(CLIENT.format(python=getattr(sys, "_base_executable", sys.executable), address=str(address)))
    stub.chmod(0o755)
    environment = os.environ | {"MPLBACKEND": "agg", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": ""}
    command = [sys.executable, __file__, str(address), str(stub)]
    return stub, subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, cwd=folder)


@cache
def executable() -> str:
    """Return the path of the warm Python of this process, or of the call of pytest that it belongs to."""
    shared = os.environ.get(SHARED)
    stub, server = (Path(shared), None) if shared else start()
    deadline = time.monotonic() + 600  # without bytecode files, beside other work, the imports take minutes
    while not stub.with_name("socket").exists():
        ended = server.poll() if server else None
        if ended is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the warm Python did not start (exit status {ended})")
        time.sleep(0.05)
    return str(stub)


def serve(address: str, stub: str) -> None:
    """Import what is slow to import, then fork for every call until the starting process is gone."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no fork looks for garbage among the imported modules, or copies their pages to do so
    sys.executable = stub  # jobs of a forked Snakemake are forks too
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # handlers are not waited for
    parent = os.getppid()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address + ".new")
    listening.listen(64)
    os.rename(address + ".new", address)
    listening.settimeout(1)
    while os.getppid() == parent:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listening.close()
            _handle(connection)
        connection.close()


def _handle(connection: socket.socket) -> None:
    """Run one program in a fork and tell the caller how it ended; a caller that is killed takes it along."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.settimeout(None)
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    known = b""
    while len(known) < int.from_bytes(length, "big"):
        known += connection.recv(1 << 16)
    program = os.fork()
    if program == 0:
        connection.close()
        _become(streams, *json.loads(known))

    def watch() -> None:
        if not connection.recv(1):  # nothing is sent: the caller is gone
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if os.getsid(program) == program else os.kill)(program, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(str(status if status >= 0 else 128 - status).encode())
    os._exit(0)


def _become(
    streams: list[int], arguments: list[str], folder: str, environment: dict[str, str], session: int, caller: int
) -> None:
    """Be the Python that was called with these arguments.

    A caller that leads a session has it led by the program, so that what the program starts belongs to it. Whatever
    acts on the start of Python (``sitecustomize`` on the path) does so here; the caller's session is WARM_SESSION.
    """
    code = 1
    if session == caller:
        session = os.setsid() or os.getpid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment | {"WARM_SESSION": str(session)})
        sys.orig_argv = [sys.executable, *arguments]
        named = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[0:1] = [*named]  # sys.path[0] was the folder of this file
        if any((Path(path) / "sitecustomize.py").is_file() for path in named):
            sys.modules.pop("sitecustomize", None)
            importlib.import_module("sitecustomize")
        if arguments[0] == "-u":
            arguments = arguments[1:]
            sys.stdout.reconfigure(write_through=True)
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, folder)
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, folder)
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            import atexit

            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(*sys.argv[1:])
