#!/usr/bin/env bash
# Ray 2.60.0 ends a worker that had nothing to do for a second, if there are more workers than CPUs, and actors count. So
# beside an actor on each CPU no task's process lives on: whoever has a task now and then (or Ray Data's stages that wait
# for each other) pays for a new process and its imports every time. `RAY_idle_worker_killing_time_threshold_ms` in the
# environment of the node says how long a worker may be idle.
#
# Seen: six tasks, 2.5 s apart, beside two actors on two CPUs ran in six processes; with a threshold of 60 s in one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
cd "$folder"
cat > tasks.py <<'PYTHON'
import os
import time

import ray


@ray.remote(num_cpus=0.75)
class Actor:
    def ready(self):
        return True


@ray.remote(num_cpus=0.25)
def process():
    return os.getpid()


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
actors = [Actor.remote() for _ in range(2)]
ray.get([actor.ready.remote() for actor in actors])
found = set()
for _ in range(6):
    found.add(ray.get(process.remote()))
    time.sleep(2.5)
print(len(found))
PYTHON
by_default=$(RAY_AUTH_MODE=disabled venv/bin/python tasks.py 2>/dev/null | tail -n 1)
patient=$(RAY_AUTH_MODE=disabled RAY_idle_worker_killing_time_threshold_ms=60000 venv/bin/python tasks.py 2>/dev/null |
    tail -n 1)
echo "processes of six tasks: $by_default by default, $patient with a threshold of 60 s"
[ "$by_default" -ge 3 ] && [ "$patient" -eq 1 ] || { echo "Ray behaves otherwise now"; exit 1; }
