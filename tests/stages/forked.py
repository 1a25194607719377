"""Modules as programs in forked children of a process that has imported what is slow to import."""

import runpy
import sys
import traceback


def run_program(module: str, *arguments: str) -> int:
    """Run what `python -m module arguments…` runs, and return its exit status; its output is written out."""
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 2
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
