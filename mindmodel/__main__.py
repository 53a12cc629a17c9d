"""`python -m mindmodel` is the same as `mindmodel`."""

import sys

if sys.version_info < (3, 10):
    print("mindmodel: Python 3.10 to 3.12 is needed, this is " + sys.version.split()[0], file=sys.stderr)
    sys.exit(2)

from mindmodel.cli.main import main  # noqa: E402, an older Python cannot read it

if __name__ == "__main__":
    sys.exit(main())
