"""`python -m outtray`: the same program as the script `outtray`."""

from __future__ import annotations

import sys

from outtray.cli import main

if __name__ == "__main__":
    sys.exit(main())
