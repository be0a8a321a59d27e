"""`python -m capture_lib` is the command `capture`."""

import sys

from capture_lib.cli import main

sys.exit(main())
