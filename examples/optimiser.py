"""Optimise a variable: an open batch to which each step adds the job that it needs next.

Needs a running `tweezer up`.
"""

from checkerboard import build_sequence, order
from scipy.optimize import minimize_scalar

from tweezer import Job, connect

RUNS = 500

with connect() as queue:
    # An open batch may be submitted without jobs. It accepts more until it is closed.
    batch = queue.submit(build_sequence(), device="EMU_FREE", open=True, name="best final detuning")
    print("batch", batch.id)

    def cost(final_detuning: float) -> float:
        """Run one job and return minus the share of checkerboards that it measured."""
        index = batch.add_jobs([Job(runs=RUNS, variables={"final_detuning": final_detuning}, seed=1)])
        job = batch.results(timeout_s=60)[index]  # waits until no job of the batch is pending or running
        share = order(job.counter)
        print(f"job {index:2}: final detuning {final_detuning:6.2f} rad/µs, checkerboards {share:6.1%}", flush=True)
        return -share

    try:
        best = minimize_scalar(cost, bounds=(0, 30), method="bounded", options={"xatol": 0.2})
    finally:
        batch.close()  # otherwise the batch ends as TIMED_OUT after five minutes without work

    print(f"best: {best.x:.2f} rad/µs, {-best.fun:.1%}; the batch is {batch.wait(timeout_s=10).status}")
