"""Real servers that tests read stores from: a counting file server, and one that speaks S3."""

from __future__ import annotations

import functools
import http.server
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attnstore.store.commits import StorePaths


class FileServer:
    """``python -m http.server`` on a directory, in this process, that keeps what was asked.

    Parameters
    ----------
    ranges
        Answer header ``Range``, as every web server but Python's own does.
    """

    def __init__(self, directory: Path, *, ranges: bool = True) -> None:
        self.requests: list[str] = []
        self.sent = 0
        self.lies: dict[str, bytes] = {}
        """What it says of a path instead."""
        self.delay = 0.0
        asked = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked.requests.append(self.path)
                time.sleep(asked.delay)
                file = Path(self.translate_path(self.path))
                lie = asked.lies.get(self.path.lstrip("/"))
                if lie is None and not file.is_file():
                    super().do_GET()
                    return
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                with file.open("rb") if lie is None else io.BytesIO(lie) as stream:
                    size = stream.seek(0, os.SEEK_END)
                    start, last = map(int, wanted.groups()) if ranges and wanted else (0, size - 1)
                    stream.seek(start)
                    part = stream.read(last + 1 - start)
                if ranges and wanted:
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{last}/{size}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                self.wfile.write(part)
                asked.sent += len(part)

            def log_message(self, *_: object) -> None:
                pass

        handler = functools.partial(Handler, directory=str(directory))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self) -> list[str]:
        """Return the requests since the last call."""
        found, self.requests[:] = list(self.requests), []
        return found

    def take_sent(self) -> int:
        """Return the bytes of files sent since the last call."""
        found, self.sent = self.sent, 0
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def file_server(directory: Path, *, ranges: bool = True) -> Iterator[FileServer]:
    server = FileServer(directory, ranges=ranges)
    try:
        yield server
    finally:
        server.close()


S3_CREDENTIALS: Mapping[str, str] = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """Moto's S3 in a process of its own; yield its endpoint. `log` gets a line for each request."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env={**os.environ, **S3_CREDENTIALS}, stdout=stream, stderr=stream,
        )  # fmt: skip
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(endpoint, timeout=5).close()
                    break
                except urllib.error.HTTPError as error:
                    error.close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield endpoint
        finally:
            process.terminate()
            process.wait(30)


def files_of(paths: StorePaths) -> dict[str, bytes]:
    """Every file of a store but for its catalog, by its path."""
    return {
        p.relative_to(paths.root).as_posix(): p.read_bytes()
        for p in sorted(paths.root.rglob("*"))
        if p.is_file() and "catalog" not in p.relative_to(paths.root).parts
    }
