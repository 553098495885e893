"""The server's side of one WebSocket (RFC 6455), as far as pysc2's client needs it."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import struct

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10


class WebSocket:
    """One accepted connection; `EOFError` where the other side has gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._shake_hands()

    def receive(self) -> bytes:
        """Return the next message."""
        message = b""
        while True:
            first, second = self._take(2)
            payload = self._payload(second)
            opcode = first & 15
            if opcode == _CLOSE:
                raise EOFError
            if opcode == _PING:
                self._send(payload, _PONG)
                continue
            # pysc2 sends its bytes as text, which they are not; so nothing is decoded.
            message += payload
            if first & 128:
                return message

    def send(self, message: bytes) -> None:
        self._send(message, _BINARY)

    def _payload(self, second: int) -> bytes:
        length = second & 127
        if length == 126:
            (length,) = struct.unpack(">H", self._take(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._take(8))
        mask = self._take(4) if second & 128 else bytes(4)
        data = self._take(length)
        key = (mask * (length // 4 + 1))[:length]
        return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(length, "big")

    def _send(self, data: bytes, opcode: int) -> None:
        length = len(data)
        if length < 126:
            header = bytes([128 | opcode, length])
        elif length < 1 << 16:
            header = bytes([128 | opcode, 126]) + struct.pack(">H", length)
        else:
            header = bytes([128 | opcode, 127]) + struct.pack(">Q", length)
        self._connection.sendall(header + data)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _fill(self) -> None:
        data = self._connection.recv(1 << 16)
        if not data:
            raise EOFError
        self._buffer += data

    def _shake_hands(self) -> None:
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        found = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
        if found is None:
            raise EOFError
        accept = base64.b64encode(hashlib.sha1(found[1] + _MAGIC, usedforsecurity=False).digest())
        self._connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
