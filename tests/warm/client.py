"""Stands for a process that the server forks: `client.py ADDRESS -c CODE ARGUMENT...`."""

import json
import os
import socket
import sys

address, *arguments = sys.argv[1:]
request = {"arguments": arguments, "environ": dict(os.environ), "cwd": os.getcwd()}
with socket.socket(socket.AF_UNIX) as server:
    server.connect(address)
    socket.send_fds(server, [b"\0"], [0, 1, 2])
    server.sendall(json.dumps(request).encode() + b"\n")
    code = int(server.makefile().readline())
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
