"""`python -m sdar` is the `sdar` command."""

import sys

from sdar.cli import main

sys.exit(main())
