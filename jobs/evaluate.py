"""ray job submit --working-dir . -- python jobs/evaluate.py jobs/evaluate.toml --set runs.ours=s3://… …"""

import sys

from raygen.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
