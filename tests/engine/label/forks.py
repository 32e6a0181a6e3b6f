"""Runs malcli in forks of one process that has all imported, and breaks some on purpose.

    python forks.py PART_BOXES < tasks > codes

A task is a line of JSON: `arguments` of malcli, `log` (a file for stdout and stderr), `journal` (a
file that gets a line for each part that is written), and what breaks it, or nothing:

    {"after": seconds, "signal": number}   the signal comes then
    {"call": k, "signal": number}          it comes in the k-th call that makes, syncs, renames or
                                           removes a file, before the call if k is even, else after
    {"call": k, "errno": number}           that call, and every later one that writes, fails
    {"bytes": n}                           no file may grow beyond n bytes

Answers with a line of JSON for each: the exit code, negative for a signal.
"""

import builtins
import io
import json
import os
import resource
import signal
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq

# `label` and `fit` load these late; here each fork would, which takes seconds.
import malcli.engine.eval.masks
import malcli.engine.fit.command
import malcli.engine.label.batch_size
import malcli.engine.label.plan  # noqa: F401
from malcli.cli.main import main
from malcli.engine.label import parts
from malcli.engine.label.parts import PartFolder
from malcli.model import checkpoint

WRITING = [
    (os, "fsync"),
    (os, "rename"),
    (checkpoint, "save_file"),
    (os, "replace"),
    (os, "link"),
    (os, "mkdir"),
    (pq, "write_table"),
]
WRITING += [(pa.ipc, "new_stream"), (io, "open"), (builtins, "open"), (pq, "ParquetWriter")]
REMOVING = [(os, "unlink"), (os, "rmdir")]


def break_calls(task):
    """Wrap the functions that change files, so that one call of them breaks."""
    seen = []

    def wrap(module, name, removes):
        call = getattr(module, name)

        def broken(*args, **kwargs):
            mode = str(kwargs.get("mode", args[1] if len(args) > 1 else "r"))
            if name == "open" and not set(mode) & set("wax+"):
                return call(*args, **kwargs)
            seen.append(name)
            number = task["call"]
            if "errno" in task:
                if len(seen) >= number and not removes:
                    raise OSError(task["errno"], os.strerror(task["errno"]))
                return call(*args, **kwargs)
            if len(seen) == number and number % 2 == 0:
                os.kill(os.getpid(), task["signal"])
            try:
                return call(*args, **kwargs)
            finally:  # also where the call fails, as mkdir of a folder that is there
                if len(seen) == number and number % 2:
                    os.kill(os.getpid(), task["signal"])

        setattr(module, name, broken)

    for module, name in WRITING:
        wrap(module, name, removes=False)
    for module, name in REMOVING:
        wrap(module, name, removes=True)


def keep_journal(path):
    """Write down each part that is written."""
    write = PartFolder.write
    journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def writing(self, index, outcomes):
        os.write(journal, f"{index}\n".encode())
        write(self, index, outcomes)

    PartFolder.write = writing


def run(task):
    """Be malcli, with stdout and stderr in a file."""
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    keep_journal(task["journal"])
    if "bytes" in task:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["bytes"],) * 2)
    if "call" in task:
        break_calls(task)
    sys.argv = ["malcli", *task["arguments"]]
    try:
        main()
    except SystemExit as stop:
        sys.stderr.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 1)


def serve():
    """Run tasks until there are no more."""
    parts.PART_BOXES = int(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if not child:
            try:
                run(task)
            finally:
                os._exit(70)  # not reached by a command that ends as it should
        if "after" in task:
            time.sleep(task["after"])
            os.kill(child, task["signal"])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    serve()
