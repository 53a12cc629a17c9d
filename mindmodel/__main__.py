"""`python -m mindmodel` is the same as `mindmodel`."""

import sys

from mindmodel.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
