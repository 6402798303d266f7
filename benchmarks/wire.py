"""Counts the bytes that two programs exchange over TCP: a relay between them that reads nothing of what passes."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType


class Meter:
    """A relay from a free port on loopback to `target`, with the bytes of both directions.

    Args:
        target: port on loopback that connections are passed on to.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.num_bytes = {"up": 0, "down": 0}
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def total(self) -> int:
        """Bytes of both directions."""
        return sum(self.num_bytes.values())

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:  # the server is not up: the caller sees a closed connection, as without the relay
            writer.close()
            return
        await asyncio.gather(self._pass(reader, inner_writer, "up"), self._pass(inner_reader, writer, "down"))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        try:
            while block := await reader.read(2**16):
                self.num_bytes[direction] += len(block)
                writer.write(block)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
