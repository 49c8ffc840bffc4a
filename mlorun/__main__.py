"""`python -m mlorun` is `mlorun`."""

from __future__ import annotations

import sys

from mlorun.cli import main

sys.exit(main())
