"""Calibrate every night, and let a sweep wait for the calibration and an analysis batch for the sweep.

Needs a running `tweezer up`, and may be run again at any time: there is one schedule.
"""

from checkerboard import build_sequence, order

from tweezer import Conflict, Job, JobStatus, connect

SCHEDULE = "nightly calibration"
RUNS = 500


def job(final_detuning: float, runs: int = RUNS) -> Job:
    return Job(runs=runs, variables={"final_detuning": final_detuning}, seed=1)


with connect() as queue:
    sequence = build_sequence()

    # The schedule submits this batch every night. One failed job cancels the rest of it.
    try:
        queue.create_schedule(
            SCHEDULE,
            sequence,
            [job(-8.0), job(5.0), job(19.0)],
            cron="30 2 * * *",
            time_zone="Europe/Paris",
            batch={
                "device": "EMU_FREE",
                "name": "calibration",
                "tags": ["calibration"],
                "failure_threshold": 1,
                "on_failures": "cancel",
            },
        )
    except Conflict:
        print(f"there is a schedule {SCHEDULE!r} already")

    # Do not wait for the night: submit the batch of the schedule now.
    calibration = queue.run_schedule(SCHEDULE)

    # The sweep starts when the calibration is DONE. It pauses when three of its jobs have failed.
    sweep = queue.submit(
        sequence,
        [job(-8.0 + 3 * step) for step in range(13)],
        device="EMU_FREE",
        name="sweep after calibration",
        tags=["sweep"],
        depends_on=[calibration],
        failure_threshold=3,
        retries={"per_job": 2, "total": 5},
    )

    # The analysis batch measures two references, with more shots. It starts when the sweep has ended, in any status.
    analysis = queue.submit(
        sequence,
        [job(-8.0, 2000), job(19.0, 2000)],
        device="EMU_FREE",
        name="references of the sweep",
        tags=["analysis"],
        depends_on=[(sweep, "ENDED")],
    )
    for batch in (calibration, sweep, analysis):
        print(batch.id, batch.record().doc.name)

    ended = analysis.wait(timeout_s=300)
    print(f"the analysis batch is {ended.status}")
    if ended.fault is not None:
        raise SystemExit(f"it did not run ({ended.fault.code}): {ended.fault.message}")
    disordered, ordered = (order(found.counter) for found in analysis.results())
    for found in sweep.results():
        if found.status is JobStatus.DONE:
            share = (order(found.counter) - disordered) / (ordered - disordered)
            line = f"{found.variables['final_detuning']:6.1f} rad/µs  {share:5.2f}  {'#' * round(40 * max(share, 0))}"
            print(line.rstrip())
