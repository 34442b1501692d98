"""``python -m lightning_calib`` is ``lightning-calib``."""

import sys

from lightning_calib.cli import main

if __name__ == "__main__":
    sys.exit(main())
