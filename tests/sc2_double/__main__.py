"""Serve one connection, as the game does: `python -m sc2_double -listen HOST -port PORT ...`."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

from sc2_double.protocol import Game, api
from sc2_double.websocket import WebSocket

# Nobody is coming any more.
CONNECT_SECONDS = 60


def main(arguments: list[str]) -> None:
    """Answer requests until told to quit or left alone; other options of the game are ignored."""
    host, port = (arguments[arguments.index(option) + 1] for option in ("-listen", "-port"))
    with socket.create_server((host, int(port))) as server:
        server.settimeout(CONNECT_SECONDS)
        connection, _ = server.accept()
    with connection, suppress(EOFError, ConnectionError):
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = WebSocket(connection)
        game = Game()
        while game.status != api.quit:
            client.send(game.answer(api.Request.FromString(client.receive())).SerializeToString())


if __name__ == "__main__":
    main(sys.argv)
