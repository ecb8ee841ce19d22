"""An NVMe over TCP target with reservations, for a real kernel's NVMe initiator: `tools/judges/kernel.sh nvme` runs the
fencing suite through that kernel against it, since no emulator at hand has NVMe reservations. Not a server to use.

    python -m tests.conformance.nvme_target PORT        one namespace of 1 MiB, shared by every host that connects

Commands take effect in the order in which they arrive, so that a preempt has nothing to abort. Sources: NVM Express
Base 2.0 (queues, Identify, Fabrics commands, reservations 8.19), TCP Transport 1.0 (PDUs).
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

Answer = Callable[..., None]
"""(command id, status, result): the command's end."""
Send = Callable[[int, bytes], None]
"""(command id, data for the host)."""

SUBSYSTEM = "nqn.2026-11.dev.yunhe.test:volumes"
SIZE = 1 << 20
BLOCK = 4096
CAPABILITIES = 0x7F | 1 << 16 | 0x20 << 24 | 1 << 37
"""128 entries a queue, contiguous queues, ready within 16 s, the NVM command set."""
VERSION = 0x1_0400
CONFLICT, INVALID_FIELD, INVALID_OPCODE = 0x83, 0x02, 0x01


@dataclass
class Namespace:
    data: bytearray = field(default_factory=lambda: bytearray(SIZE))
    keys: dict[bytes, int] = field(default_factory=dict)
    """By host id."""
    holder: bytes | None = None
    kind: int = 0
    generation: int = 0
    persists: int = 0


@dataclass
class Controller:
    number: int
    host: bytes
    cc: int = 0


class Refused(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


def reserve_command(ns: Namespace, host: bytes, opcode: int, cdw10: int, data: bytes) -> None:
    """Register (0Dh), Acquire (11h), Release (15h)."""
    action, ignore, kind = cdw10 & 7, cdw10 >> 3 & 1, cdw10 >> 8 & 0xFF
    first, second = struct.unpack_from("<Q", data)[0], (struct.unpack_from("<Q", data, 8)[0] if len(data) > 8 else 0)
    mine = ns.keys.get(host)
    if opcode == 0x0D:
        if action == 0:
            if mine not in (None, second):
                raise Refused(CONFLICT)
            ns.keys[host] = second
        elif action == 1:
            if mine is None or (not ignore and mine != first):
                raise Refused(CONFLICT)
            del ns.keys[host]
            if ns.holder == host:
                ns.holder, ns.kind = None, 0
        elif action == 2:
            if mine is None or (not ignore and mine != first):
                raise Refused(CONFLICT)
            ns.keys[host] = second
        ns.generation += 1
        return
    if mine is None or (not ignore and mine != first):
        raise Refused(CONFLICT)
    if opcode == 0x11:
        if action == 0:
            if ns.holder is not None and (ns.holder, ns.kind) != (host, kind):
                raise Refused(CONFLICT)
            ns.holder, ns.kind = host, kind
        else:
            if second not in ns.keys.values():
                raise Refused(CONFLICT)
            if ns.holder is not None and ns.keys[ns.holder] == second:
                ns.holder, ns.kind = host, kind
            for other in [h for h, key in ns.keys.items() if key == second and h != host]:
                del ns.keys[other]
            ns.generation += 1
    elif opcode == 0x15:
        if action == 0:
            if ns.holder == host:
                if kind != ns.kind:
                    raise Refused(INVALID_FIELD)
                ns.holder, ns.kind = None, 0
        else:
            ns.keys.clear()
            ns.holder, ns.kind = None, 0
            ns.generation += 1


def report(ns: Namespace, extended: bool) -> bytes:
    if not extended:
        raise Refused(0x18)  # hosts here have ids of 128 bits
    head = struct.pack("<IBH2xB", ns.generation, ns.kind, len(ns.keys), ns.persists).ljust(64, b"\0")
    for n, (host, key) in enumerate(ns.keys.items()):
        head += struct.pack("<HB5xQ", n + 1, int(host == ns.holder), key) + host + bytes(32)
    return head


class Target:
    def __init__(self) -> None:
        self.ns = Namespace()
        self.controllers: dict[int, Controller] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One queue: one connection."""
        controller: Controller | None = None
        queue = 0
        pending: dict[int, tuple[bytes, bytearray]] = {}

        def answer(cid: int, status: int = 0, result: int = 0) -> None:
            cqe = struct.pack("<QHHHH", result, 0, queue, cid, status << 1)
            writer.write(struct.pack("<BBBBI", 5, 0, 24, 0, 24) + cqe)

        def send(cid: int, data: bytes) -> None:
            head = struct.pack("<BBBBI", 7, 4, 24, 24, 24 + len(data))
            writer.write(head + struct.pack("<HHII4x", cid, 0, 0, len(data)) + data)

        try:
            while True:
                head = await reader.readexactly(8)
                kind, _, _, pdo, plen = struct.unpack("<BBBBI", head)
                body = await reader.readexactly(plen - 8)
                if kind == 0:
                    writer.write(struct.pack("<BBBBIHBBI112x", 1, 0, 128, 0, 128, 0, 0, 0, 131072))
                elif kind == 6:  # data that a write was asked for
                    cid, _tag, at, length = struct.unpack_from("<HHII", body)
                    sqe, data = pending[cid]
                    data[at : at + length] = body[pdo - 8 : pdo - 8 + length]
                    if head[1] & 4:
                        del pending[cid]
                        self.command(controller, queue, sqe, bytes(data), answer, send)
                elif kind == 4:
                    sqe = body[:64]
                    cid = struct.unpack_from("<H", sqe, 2)[0]
                    inline = body[pdo - 8 :] if pdo else b""
                    (sgl_length,) = struct.unpack_from("<I", sqe, 32)
                    if sqe[0] == 0x7F and sqe[4] == 1:  # connect
                        host, number = inline[:16], struct.unpack_from("<H", inline, 16)[0]
                        queue = struct.unpack_from("<H", sqe, 42)[0]
                        if queue == 0:
                            number = max(self.controllers, default=0) + 1
                            self.controllers[number] = Controller(number, host)
                        controller = self.controllers[number]
                        answer(cid, 0, number)
                    elif sqe[0] in (0x01, 0x0D, 0x11, 0x15) and queue and sgl_length and not inline:
                        pending[cid] = (sqe, bytearray(sgl_length))
                        ready = struct.pack("<HHII4x", cid, 0, 0, sgl_length)
                        writer.write(struct.pack("<BBBBI", 9, 0, 24, 0, 24) + ready)
                    else:
                        self.command(controller, queue, sqe, inline, answer, send)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def command(
        self, controller: Controller | None, queue: int, sqe: bytes, data: bytes, answer: Answer, send: Send
    ) -> None:
        opcode, cid = sqe[0], struct.unpack_from("<H", sqe, 2)[0]
        cdw10, cdw11, cdw12 = struct.unpack_from("<III", sqe, 40)
        (length,) = struct.unpack_from("<I", sqe, 32)
        ns = self.ns
        assert controller is not None
        try:
            if opcode == 0x7F:
                offset = struct.unpack_from("<I", sqe, 44)[0]
                if sqe[4] == 4:  # property get
                    shut_down = 8 if controller.cc >> 14 & 3 else 0
                    value = {0: CAPABILITIES, 8: VERSION, 0x14: controller.cc, 0x1C: (controller.cc & 1) | shut_down}
                    answer(cid, 0, value.get(offset, 0))
                else:
                    if offset == 0x14:
                        controller.cc = struct.unpack_from("<Q", sqe, 48)[0] & 0xFFFFFFFF
                    answer(cid)
                return
            if queue == 0:
                self.admin(controller, opcode, cid, cdw10, length, answer, send)
                return
            lba, blocks = struct.unpack_from("<Q", sqe, 40)[0], (cdw12 & 0xFFFF) + 1
            if opcode == 0x02:
                send(cid, bytes(ns.data[lba * BLOCK : (lba + blocks) * BLOCK]))
            elif opcode in (0x01, 0x08):
                if ns.holder is not None and ns.holder != controller.host:
                    raise Refused(CONFLICT)
                ns.data[lba * BLOCK : (lba + blocks) * BLOCK] = data or bytes(blocks * BLOCK)
            elif opcode in (0x0D, 0x11, 0x15):
                reserve_command(ns, controller.host, opcode, cdw10, data)
                if opcode == 0x0D and cdw10 >> 30 in (2, 3):
                    ns.persists = cdw10 >> 30 & 1
            elif opcode == 0x0E:
                send(cid, report(ns, bool(cdw11 & 1)).ljust(length, b"\0")[:length])
            elif opcode != 0x00:
                raise Refused(INVALID_OPCODE)
            answer(cid)
        except Refused as refused:
            answer(cid, refused.status | 0x4000)

    def admin(
        self, controller: Controller, opcode: int, cid: int, cdw10: int, length: int, answer: Answer, send: Send
    ) -> None:
        if opcode == 0x06:
            page = bytearray(4096)
            cns = cdw10 & 0xFF
            if cns == 1:
                page[4:24], page[24:64] = b"YUNHE0001".ljust(20), b"Yunhe test".ljust(40)
                page[64:72] = b"1".ljust(8)
                page[77] = 5  # MDTS: 128 KiB
                struct.pack_into("<HI", page, 78, controller.number, VERSION)
                page[76] = 2  # CMIC: several controllers
                page[111] = 1  # an I/O controller
                struct.pack_into("<H", page, 320, 1)
                page[512], page[513] = 0x66, 0x44
                struct.pack_into("<HIH", page, 514, 128, 1, 0x20)  # MAXCMD, NN, ONCS: reservations
                page[525] = 1  # volatile write cache
                struct.pack_into("<I", page, 536, 1 << 0 | 1 << 20)
                page[768 : 768 + len(SUBSYSTEM)] = SUBSYSTEM.encode()
                struct.pack_into("<II", page, 1792, 4 + 4096 // 16, 1)  # IOCCSZ, IORCSZ
                page[1803] = 1
            elif cns == 0:
                struct.pack_into("<QQQ", page, 0, SIZE // BLOCK, SIZE // BLOCK, SIZE // BLOCK)
                page[30], page[31] = 1, 0x7F  # NMIC: shared; RESCAP
                page[104:120] = bytes(range(1, 17))
                page[128 + 2] = 12  # LBAF0: 4 KiB
            elif cns == 2:
                struct.pack_into("<I", page, 0, 1)
            elif cns == 3:
                page[0], page[1] = 3, 16
                page[4:20] = bytes(range(1, 17))
            elif cns in (5, 6, 8, 0x1C):
                raise Refused(INVALID_FIELD)
            send(cid, bytes(page[:length]))
            answer(cid)
        elif opcode == 0x09:
            answer(cid, 0, 3 | 3 << 16 if cdw10 & 0xFF == 7 else 0)
        elif opcode == 0x0A:
            answer(cid, 0, 0)
        elif opcode == 0x02:
            send(cid, bytes(length))
            answer(cid)
        elif opcode in (0x18, 0x08):
            answer(cid)
        elif opcode == 0x0C:
            return  # an event that never comes
        else:
            raise Refused(INVALID_OPCODE)


async def main() -> None:
    target = Target()
    server = await asyncio.start_server(target.serve, "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
