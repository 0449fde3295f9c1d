"""One process of an `sdar` command: the arguments are the command's."""

import sys

from sdar.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
