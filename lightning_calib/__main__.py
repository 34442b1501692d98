"""``python -m lightning_calib`` is ``lightning-calib``."""

import sys

from lightning_calib.cli import main

sys.exit(main())
