"""Rehearse with a simulated QPU: run jobs, cancel two, and check that the machine received each job only once.

Stop any running `tweezer up`. Start the machine and a Tweezer that uses it, each in a separate terminal, then run this
script in a third:

    tweezer qpu-sim --job-seconds 5
    TWEEZER_CONFIG=examples/qpu.toml tweezer up --device FRESNEL
    python examples/qpu_rehearsal.py
"""

import json
import os
import time
from urllib.request import urlopen

from checkerboard import build_sequence, order

from tweezer import Job, JobStatus, connect

MACHINE = os.environ.get("QPU_URL", "http://127.0.0.1:4300")

with connect() as queue:
    batch = queue.submit(
        build_sequence(),
        [Job(runs=200, variables={"final_detuning": 16.0}) for _ in range(4)],
        device="FRESNEL",
        name="rehearsal",
    )
    print("batch", batch.id)

    # A machine runs one job at a time. Cancel job 1 while it runs, and job 3 while it waits.
    for record in batch.changes(timeout_s=60):
        if record.counts[JobStatus.DONE] == 1 and record.counts[JobStatus.RUNNING] == 1:
            time.sleep(1)  # the machine needs a moment to start the job
            batch.cancel_jobs([1, 3], by="rehearsal")
            break
    jobs = batch.results(timeout_s=60)

for job in jobs:
    # A job that was stopped keeps the shots that the machine had measured by then.
    shots = sum(job.counter.values()) if job.data else 0
    measured = f"{shots:3} shots, checkerboards {order(job.counter):.0%}" if shots else "no shots"
    print(f"job {job.index}  {job.status:<8}  {measured:<28}  cancel: {job.record.cancel_outcome or 'none'}")

# The machine counts what it was asked, so it is an independent witness.
with urlopen(f"{MACHINE}/sim/counts") as response:
    counts = json.load(response)["jobs"]
submits = [counts[str(job.id)]["submits"] if str(job.id) in counts else 0 for job in jobs]
print("submits of each job, counted by the machine:", submits)
