"""The demo page in a process of its own, as a user starts it."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serve_demo(bundle: Path) -> Iterator[str]:
    """Yield the address of the page of `bundle`, served by `leverlab demo`."""
    port = free_port()
    command = [sys.executable, "-m", "leverlab.cli", "demo", "--bundle", str(bundle), "--port", str(port)]
    process = subprocess.Popen([*command, "--selectors", str(bundle / "none"), "--engine", "f16"])
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "the demo ended"
            try:
                with urllib.request.urlopen(address, timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
