#!/usr/bin/env bash
# Ray Data 2.60.0: in a chain read -> actors -> write, the last stage gets no CPU until the first has read everything, if
# the actors hold three quarters of two CPUs: what is computed waits in the object store. Half of all CPUs is reserved in
# equal parts for the stages, from the front on; what the actors leave is a part too small for the last one, though its
# task would fit. With a smaller `op_resource_reservation_ratio` it is written as it comes.
#
# Seen: of 20 rows, 0.2 s each to read, none or one is written before the last is read; with a ratio of 0.375 twelve.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'ray[data]==2.60.0' pyarrow==26.0.1 pandas==3.0.3
cd "$folder"
cat > chain.py <<'PYTHON'
import sys
import time

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext


def stamp(batch, name, seconds=0.0):
    time.sleep(seconds)
    return batch.append_column(name, pa.array([time.time()]))


class Stamper:
    def __call__(self, batch):
        return stamp(batch, "computed")


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
DataContext.get_current().enable_progress_bars = False
DataContext.get_current().op_resource_reservation_ratio = float(sys.argv[1])
task = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": 0.25}
actors = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": 0.75, "compute": ActorPoolStrategy(size=2)}
rows = ray.data.from_items([{"n": n} for n in range(20)], override_num_blocks=20)
rows = rows.map_batches(stamp, fn_kwargs={"name": "read", "seconds": 0.2}, **task).map_batches(Stamper, **actors)
times = rows.map_batches(stamp, fn_kwargs={"name": "written"}, **task).to_pandas()
print((times["written"] < times["read"].max()).sum())
PYTHON
by_default=$(RAY_AUTH_MODE=disabled venv/bin/python chain.py 0.5 2>/dev/null | tail -n 1)
smaller=$(RAY_AUTH_MODE=disabled venv/bin/python chain.py 0.375 2>/dev/null | tail -n 1)
echo "written before the last was read: $by_default of 20 by default, $smaller with a ratio of 0.375"
[ "$by_default" -le 2 ] && [ "$smaller" -ge 10 ] || { echo "Ray Data behaves otherwise now"; exit 1; }
