"""`python -m outtray`: the same program as the script `outtray`."""

from __future__ import annotations

import gc
import sys

if __name__ == "__main__":
    gc.set_threshold(10_000)  # what is loaded first makes many objects and no garbage

    from outtray.cli import main

    code = main()
    gc.freeze()  # nor does the end of the program look for cycles: both together are a tenth of an idle flush
    sys.exit(code)
