"""ray job submit --working-dir . -- python jobs/refresh.py jobs/refresh.toml --set pool=s3://… --set table=…"""

import sys

from raygen.cli import main

if __name__ == "__main__":
    sys.exit(main(["refresh", *sys.argv[1:]]))
