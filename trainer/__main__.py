"""`python -m trainer` is the same program as `train` (and what torchrun starts)."""

import sys

from trainer.app import main

if __name__ == "__main__":
    # `-m` puts the current folder first, where a `statistics.py` would be imported in place of Python's; trainer itself
    # may lie there
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))
    main()
