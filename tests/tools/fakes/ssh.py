"""Stands in for `ssh`: runs the command in a shell here, with the host as its address; `down` is a host that is not."""

from __future__ import annotations

import os
import subprocess
import sys


def main() -> int:
    arguments = sys.argv[1:]
    while arguments[0] == "-o":
        arguments = arguments[2:]
    host, command = arguments
    host = host.rpartition("@")[2]
    if host == "down":
        print(f"ssh: connect to host {host} port 22: No route to host", file=sys.stderr)
        return 255
    environment = {**os.environ, "FAKE_ADDRESS": host}
    return subprocess.run(["/bin/sh", "-c", command], env=environment, cwd="/", start_new_session=True).returncode


if __name__ == "__main__":
    sys.exit(main())
