"""A fresh interpreter for one run: reads what to run on descriptor 0, gives up what it may, runs it. Started as a script from a
folder that also holds its neighbours and the packages that the code may import.

What to run is 4 bytes of length, big-endian, and JSON; what follows is the standard input of the code.
"""

import base64
import json
import os
import random
import struct

from cells import run_cells
from confine import close_descriptors, drop_privileges, end_with_parent, install_filter, limit_resources

SEED = 0
LIBRARIES = 256 << 20
"""Bytes of address space for the interpreter and what it imports, beyond the run's own memory."""
READY = b"+"


def main():
    request = json.loads(read_exactly(struct.unpack("!I", read_exactly(4))[0]))
    close_descriptors()
    random.seed(SEED)
    limit_resources(request["limits"], LIBRARIES)
    drop_privileges()
    end_with_parent()
    if request["filter"]:
        install_filter(base64.b64decode(request["filter"]))
    os.write(1, READY)  # from here on the code has the process; without this byte it was never started
    status = 1
    try:
        status = run_cells(request["cells"], request["show"])
    finally:
        os._exit(status)


def read_exactly(count):
    data = bytearray()
    while len(data) < count:
        more = os.read(0, count - len(data))  # nothing is buffered: the rest is the code's
        if not more:
            raise EOFError("the request is cut")
        data += more
    return bytes(data)


main()
