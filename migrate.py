"""`migrate.py status | up | down N | list | create NAME`: the same as `metrics-service migrate`."""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["migrate", *sys.argv[1:]])
