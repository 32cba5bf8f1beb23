"""A way to a server for those who reach this machine by another address, and one that can be shut."""

import socket
import threading
from contextlib import contextmanager


class Gate:
    """A port on *host* that leads to the server at *to*, and can be closed."""

    def __init__(self, host, to):
        self.to, self.closed = to, threading.Event()
        self.listener = socket.create_server((host, 0))
        self.url = f"http://{host}:{self.listener.getsockname()[1]}"
        self.open = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if self.closed.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(self.to)
            except OSError:  # the server is gone
                near.close()
                continue
            self.open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self.pump, args=pair, daemon=True).start()

    @staticmethod
    def pump(source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            one.close()

    @contextmanager
    def shut(self):
        self.closed.set()
        for one in self.open:
            one.close()
        yield
        self.closed.clear()
