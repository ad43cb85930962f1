"""Small JSON messages over one TCP connection, a line each."""

import contextlib
import json
import socket
import threading


class Connection:
    """One end of a TCP connection that carries JSON values.

    Args:
        endpoint: A connected socket; belongs to the connection from here on.
    """

    def __init__(self, endpoint: socket.socket) -> None:
        endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = endpoint
        self._lines = endpoint.makefile("rb")
        self._sending = threading.Lock()

    def send(self, message: dict) -> bool:
        """Returns whether the message left; `False` once the other end is gone."""
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError:
            return False
        return True

    def receive(self, seconds: float | None = None) -> dict | None:
        """Waits for a message; `None` if the other end is gone or takes longer."""
        self._socket.settimeout(seconds)
        try:
            line = self._lines.readline()
            return json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the other end was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
