"""`python -m fmcore`: the command line."""

import sys

from fmcore.cli import main

sys.exit(main())
