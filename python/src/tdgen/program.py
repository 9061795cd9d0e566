"""`tdgen` of a wheel that brings the C program along (tools/release wheel)."""

from __future__ import annotations

import os
import sys


def path() -> str | None:
    """The program in this package, or None: then the package was installed from source."""
    launcher = os.path.join(os.path.dirname(os.path.realpath(__file__)), "_program", "bin", "tdgen")
    return launcher if os.path.isfile(launcher) else None


def main() -> int:
    program = path()
    if program is None:
        print("tdgen: this package was installed without the C program; build it (README.md of the repository), or "
              "install a wheel made by tools/release", file=sys.stderr)
        return 2
    # `tdgen prepare` looks for its command beside the one that was called.
    here = os.path.dirname(os.path.abspath(sys.argv[0]))
    os.environ["PATH"] = os.pathsep.join([here, os.environ["PATH"]]) if os.environ.get("PATH") else here
    os.execv("/bin/sh", ["sh", program, *sys.argv[1:]])
    return 1
