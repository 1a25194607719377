"""Notes every file of a repository that a stage or one of its workers opens for reading.

Python imports this module by itself when its folder is on the path. AUDIT_ROOT is the repository, AUDIT_LOG the file
that gets a line `stage<TAB>path` for each. Reads by libraries that open files in C or Rust are not seen.
"""

import os
import sys

if "-m" in sys.orig_argv[:-1] and (module := sys.orig_argv[sys.orig_argv.index("-m") + 1]).startswith("stages."):
    os.environ["AUDIT_STAGE"] = "@".join([module, *sys.orig_argv[sys.orig_argv.index("-m") + 2 :]])  # for its workers
elif "leverlab.pipeline.check_params" in sys.orig_argv:
    os.environ.pop("AUDIT_STAGE", None)  # a process that checks all params can only stop its stage

if "AUDIT_STAGE" in os.environ and "AUDIT_LOG" in os.environ:
    root = os.environ["AUDIT_ROOT"] + os.sep
    log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seen: set[str] = set()

    def hook(event: str, arguments: tuple) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.join(os.getcwd(), os.fsdecode(arguments[0]))
        reads = not (arguments[2] or 0) & (os.O_WRONLY | os.O_CREAT)
        if reads and path.startswith(root) and path not in seen and os.path.isfile(path):
            seen.add(path)
            os.write(log, f"{os.environ['AUDIT_STAGE']}\t{path.removeprefix(root)}\n".encode())

    sys.addaudithook(hook)
