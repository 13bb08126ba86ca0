"""A model hub on localhost that serves one folder as owner/name at one commit, for the real client library."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from pathlib import Path

COMMIT = "0123456789abcdef" * 2 + "01234567"


@contextlib.contextmanager
def hub_server(folder: Path):
    """Yield (address, requests): the server's address and the growing list of what it was asked for."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            requests.append(f"{self.command} {self.path.split('?')[0]}")

        def answer(self, code, body=b"", **headers):
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            files = {file.name: file.read_bytes() for file in folder.iterdir()}
            if path in (f"/api/models/owner/name/revision/{revision}" for revision in ("main", COMMIT)):
                siblings = [{"rfilename": name} for name in files]
                record = {"id": "owner/name", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
                self.answer(200, json.dumps(record).encode(), Content_Type="application/json")
            elif path == f"/api/models/owner/name/tree/{COMMIT}":
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            elif path.startswith(f"/owner/name/resolve/{COMMIT}/") and path.rsplit("/", 1)[1] in files:
                content = files[path.rsplit("/", 1)[1]]
                self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
            else:
                code = "RevisionNotFound" if path.startswith("/api/models/owner/name/") else "RepoNotFound"
                self.answer(404, b'{"error": "not found"}', X_Error_Code=code, Content_Type="application/json")

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
