"""A process that has imported everything and forks one child per command, so that a hundred runs cost one import.

It reads JSON lines ``{"args": [...], "folder": ..., "log": ..., "file_limit": ...}`` from standard input, and answers
with ``{"pid": ...}`` when a child begins and ``{"status": ...}`` when it has ended, negative for a signal.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
from typing import Any

__all__ = ["STEP"]

STEP = "step"  # file beside the log: the restart and the step that the child has reached, should it live no longer


def child(task: dict[str, Any]) -> None:
    os.chdir(task["folder"])
    log = os.open(task["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdin.close()
    if task.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["file_limit"], resource.RLIM_INFINITY))
    from zoo import cli
    from zoo.inference.svi import Trainer

    begin, run, steps = Trainer.__init__, Trainer.run, os.open(f"{task['log']}.{STEP}", os.O_CREAT | os.O_WRONLY)
    fits = -1

    def begun(self: Trainer, *args: Any, **options: Any) -> None:
        nonlocal fits
        begin(self, *args, **options)
        fits += 1
        os.pwrite(steps, f"{fits:09d} {0:09d}".encode(), 0)

    def told(self: Trainer, count: int) -> Any:
        found = run(self, count)
        os.pwrite(steps, f"{fits:09d} {int(self.state.step):09d}".encode(), 0)
        return found

    Trainer.__init__, Trainer.run = begun, told  # type: ignore[method-assign]
    sys.argv = ["zoo", *task["args"]]
    cli.main()


def main() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    torch.set_num_threads(1)  # no pool of threads, which would not outlive a fork
    for name in ("torch._dynamo", "zoo.inference.runner", "zoo.reports"):
        importlib.import_module(name)
    import zoo.registry

    for entry in zoo.registry.entries():
        if entry.kind == "method":
            zoo.registry.get(entry.name)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(json.loads(line))
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
