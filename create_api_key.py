"""Makes an API key: `metrics-service keys create`, for the service `default` unless the arguments name another."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["keys", "create", "--service", "default", *sys.argv[1:]])
