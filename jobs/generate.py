"""ray job submit --working-dir . -- python jobs/generate.py jobs/generate.toml --set pool=s3://… --set output=s3://…"""

import sys

from raygen.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
