"""A run of the `sdar` command that stops in the middle of its third push: `python push_run.py PLACE FOLDER ARGUMENTS...`.

PLACE is where: ``write`` while it writes the weights' second file, ``load`` while the servers take them, slowly. It says so by the file
FOLDER/middle, and waits to be killed.
"""

import sys
import time
from pathlib import Path

from sdar.cli import main
from sdar.serving import collective, weights
from sdar.serving.fleet import Fleet

place, folder, *arguments = sys.argv[1:]
pushes, files = [], []
push, save_file = Fleet.push, weights.save_file


def third_is_slow(fleet, request):
    pushes.append(request.version)
    if place == "load" and len(pushes) == 3:
        Path(folder, "slow").touch()
    push(fleet, request)


def never_ends(held, path):
    if place == "write" and len(pushes) == 2:
        files.append(path)
        if len(files) == 2:
            Path(path).write_bytes(b"half of it")
            Path(folder, "middle").touch()
            time.sleep(600)
    save_file(held, path)


Fleet.push, weights.save_file = third_is_slow, never_ends
weights.write_weights.__defaults__ = (4096,)  # several files
collective.BUCKET_BYTES = 4096

if __name__ == "__main__":
    sys.exit(main(arguments))
