"""A Python that has imported torch already, for tests that start several runs in processes of their own.

`python -m tests.support.warm_python SOCKET` imports once what a run needs. The script that `write_client`
writes is called as Python is (`SCRIPT [-P] -m MODULE ARGUMENTS`): it has the server fork, with its own
folder, environment and files. The fork runs the module. It dies with its caller, which ends as it does."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

MESSAGE = 1 << 17  # bytes, at most
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({path!r})
asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [asked], [0, 1, 2])
process = int(server.recv(64))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: os.kill(process, number))
code = int(server.recv(64) or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def write_client(script: Path, path: str) -> None:
    """Write the executable script that asks the server at `path`."""
    script.write_text(CLIENT.format(python=sys.executable, path=path))
    script.chmod(0o755)


def serve(path: str) -> None:
    """Fork for every caller, until the process that started this one is gone."""

    import gspo_cli.training.session  # noqa: F401

    parent = os.getppid()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    listener.settimeout(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while os.getppid() == parent:
        try:
            caller, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            os._exit(attend(caller))
        caller.close()


def attend(caller: socket.socket) -> int:
    """Run what a caller asks for in a process, and tell the caller its number and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    caller.setblocking(True)
    asked, files, _, _ = socket.recv_fds(caller, MESSAGE, 3)
    process = os.fork()
    if process == 0:
        caller.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os._exit(run(*json.loads(asked)))
    for file in (*files, 0, 1, 2):  # a pipe ends with the process that writes to it
        os.close(file)
    caller.send(str(process).encode())

    def end_with_caller() -> None:
        caller.recv(1)  # nothing, when it is gone
        os.kill(process, signal.SIGKILL)

    threading.Thread(target=end_with_caller, daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    caller.send(str(code).encode())
    return 0


def run(arguments: list[str], folder: str, variables: dict[str, str]) -> int:
    """What `python -m module ...` does, in `folder`. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    if "GSPO_LAUNCHER" in variables:  # a rank ends with its launcher; this one ends with who asked for it
        os.environ["GSPO_LAUNCHER"] = str(os.getppid())
    place = arguments.index("-m")
    sys.executable, module = arguments[0], arguments[place + 1]  # what it starts itself starts as fast
    sys.argv[1:] = arguments[place + 2 :]
    if "-P" not in arguments[:place]:
        sys.path[:0] = [folder]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1])
