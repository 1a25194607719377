"""Runs `python -m MODULE ARGUMENTS…` in forked children, in which all libraries of the stages are imported already.

That takes five seconds of a stage's start, which is most of what a stage of the profile `tiny` takes. The project's own
modules are imported by every child anew, from its folder and its PYTHONPATH. The argument is the path of the socket to
listen at; `warm/python` is what calls.
"""

import importlib
import json
import os
import pkgutil
import signal
import socket
import sys

import stages
from tests.stages.forked import run_program


def main(path: str) -> None:
    import_libraries()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child is waited for: each tells its own status
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            caller, _ = server.accept()
            if os.fork() == 0:
                server.close()
                answer(caller)
            caller.close()


def import_libraries() -> None:
    for module in pkgutil.iter_modules(stages.__path__):
        importlib.import_module(f"stages.{module.name}")
    for name in list(sys.modules):
        if name.partition(".")[0] in {"leverlab", "stages"}:
            del sys.modules[name]


def answer(caller: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(caller, 8, 3)
    request = json.loads(caller.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = [request["folder"], *request["environment"]["PYTHONPATH"].split(":"), *sys.path[1:]]
    code = run_program(*request["command"])
    caller.sendall(bytes([code]))
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
