"""ray job submit --working-dir . -- python jobs/train.py jobs/dtgan-128.toml --set defects=s3://… --set output=s3://…"""

import sys

from raygen.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
