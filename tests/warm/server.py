"""Imports TensorFlow, then forks itself for each client: `python -m tests.warm.server ADDRESS`."""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import types

_IMPORTED = "numpy", "keras", "tensorflow", "pytest"


def serve(address):
    """Answers clients until standard input ends. Returns a request in each forked process alone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    os.write(1, b"ready\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
    while True:
        ready, _, _ = select.select([0, listener], [], [])
        if 0 in ready:
            os._exit(0)
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _supervise(client)
        client.close()


def _supervise(client):
    """Tells the client how the forked process ends, or kills it when the client is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(client, 1, 3)
    request = json.loads(client.makefile().readline())
    ended, alive = os.pipe()
    process = os.fork()
    if process == 0:
        client.close()
        os.close(ended)
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        return request
    for stream in (*streams, alive):
        os.close(stream)
    ready, _, _ = select.select([ended, client], [], [])
    if ended not in ready:
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if ended in ready:
        client.sendall(f"{code}\n".encode())
    os._exit(0)


def run(arguments, environ, cwd):
    """What `python ARGUMENT...` does."""
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    importlib.import_module("numpy").random.seed()
    sys.path[1:1] = filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path[0] = ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # or each fork goes through all that is imported, and copies its memory
    run(**serve(sys.argv[1]))
