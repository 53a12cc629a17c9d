"""Stands in for `mindmodel`: notes how it was called, meets the other nodes, and ends as the test says.

FAKE_RECORD: folder for node_R.json: arguments, address, folder, and the signals that came.
FAKE_EXIT: `R=CODE R=CODE`, 0 where a node is not named. FAKE_STAY: stay until a signal comes, then exit with 130.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

LIMIT_S = 20


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def meet(rank: int, count: int, host: str, port: int, address: str) -> list[str]:
    """Over TCP, every node at its own address; gives the addresses that node 0 heard from."""
    heard = []
    if rank == 0:
        with socket.create_server((host, port)) as server:
            server.settimeout(LIMIT_S)
            while len(heard) < count - 1:
                link, peer = server.accept()
                link.close()
                heard.append(peer[0])
        return sorted(heard)
    end = time.monotonic() + LIMIT_S
    while True:
        try:
            with socket.create_connection((host, port), timeout=LIMIT_S, source_address=(address, 0)) as link:
                link.recv(1)
                return []
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def main() -> int:
    rank, count = int(option("--node-rank")), int(option("--nodes"))
    host, _, port = option("--master").partition(":")
    address, noted = os.environ["FAKE_ADDRESS"], []
    heard = meet(rank, count, host, int(port or 8118), address)  # until then a signal ends it at once
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        signal.signal(getattr(signal, name), lambda number, _: noted.append(signal.Signals(number).name))
    path = os.path.join(os.environ["FAKE_RECORD"], f"node_{rank}.json")

    def note(**more: object) -> None:
        with open(f"{path}.tmp", "w") as file:
            json.dump({"arguments": sys.argv[1:], "address": address, "cwd": os.getcwd(), **more}, file)
        os.replace(f"{path}.tmp", path)

    note(heard=heard, signals=noted)
    end = time.monotonic() + LIMIT_S
    while "FAKE_STAY" in os.environ and not noted:
        if time.monotonic() > end:
            return 9
        time.sleep(0.02)
    time.sleep(0.3 if noted else 0)  # a checkpoint is written; a second signal would be noted
    note(heard=heard, signals=noted)
    codes = dict(pair.split("=") for pair in os.environ.get("FAKE_EXIT", "").split())
    return 130 if noted else int(codes.get(str(rank), "0"))


if __name__ == "__main__":
    sys.exit(main())
