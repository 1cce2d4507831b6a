"""`python -m studio.cli VERB …`: what the launcher runs."""

import sys

from studio.cli import main

sys.exit(main())
