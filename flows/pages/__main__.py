"""`python -m flows.pages`: both pages and a worker."""

import sys

from flows.pages.servers import main

sys.exit(main())
