"""`python -m flcourse`: see `flcourse.cli`."""

import sys

from flcourse.cli import main

if __name__ == "__main__":
    sys.exit(main())
