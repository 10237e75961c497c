"""Sweep a variable: one batch, one job for each value, and a table of the results in `sweep.csv`.

Needs a running `tweezer up`.
"""

import csv
from pathlib import Path

from checkerboard import build_sequence, order

from tweezer import Job, JobStatus, connect

RUNS = 500
DETUNINGS = [-8.0 + 3 * step for step in range(13)]  # rad/µs

with connect() as queue:
    # One call submits all jobs, or none of them. The seed makes each job repeatable.
    batch = queue.submit(
        build_sequence(),
        [Job(runs=RUNS, variables={"final_detuning": value}, seed=1) for value in DETUNINGS],
        device="EMU_FREE",
        name="sweep of the final detuning",
        tags=["sweep"],
    )
    print("batch", batch.id)

    # Jobs are returned as they end, which is not always the order in which they were submitted.
    for job in batch.finished(timeout_s=300):
        print(f"job {job.index:2} of {len(DETUNINGS)}: {job.status}", flush=True)

    # results() returns all jobs in the order in which they were submitted.
    jobs = batch.results()

with Path("sweep.csv").open("w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(["final_detuning", "order"])
    for job in jobs:
        if job.status is not JobStatus.DONE:
            print(f"job {job.index} has no result: {job.error}")
            continue
        share = order(job.counter)
        table.writerow([job.variables["final_detuning"], share])
        print(f"{job.variables['final_detuning']:6.1f} rad/µs  {share:6.1%}  {'#' * round(40 * share)}")
