"""First on PYTHONPATH of every notebook that is run as a test: after set-up a lesson needs no network, so there is none."""

import ipaddress
import socket

_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo
SENTENCE = "The network is off in the tests: after set-up a lesson needs none."


def _is_near(host) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host if isinstance(host, str) else host.decode()).is_loopback
    except ValueError:
        return False


def _guarded(call):
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_near(address[0]):
            raise OSError(SENTENCE)
        return call(self, address)

    return connect


def _look_up(host, *arguments, **keywords):
    if not _is_near(host):
        raise OSError(SENTENCE)
    return _getaddrinfo(host, *arguments, **keywords)


socket.socket.connect, socket.socket.connect_ex = _guarded(_connect), _guarded(_connect_ex)
socket.getaddrinfo = _look_up
