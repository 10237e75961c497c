"""Build a Pulser sequence, run it with four values of its variable, and print what was measured.

Needs a running `tweezer up`.
"""

from pathlib import Path

from pulser import Pulse, Register, Sequence
from pulser.devices import AnalogDevice
from pulser.waveforms import RampWaveform

from tweezer import Job, connect

# Six atoms, 6 µm apart. The laser's detuning rises from -12 rad/µs to a final value that each job chooses.
sequence = Sequence(Register.rectangle(2, 3, spacing=6, prefix="q"), AnalogDevice)
sequence.declare_channel("ising", "rydberg_global")
final_detuning = sequence.declare_variable("final_detuning")
sequence.add(Pulse.ConstantDetuning(RampWaveform(500, 0, 8), -12, 0), "ising")
sequence.add(Pulse.ConstantAmplitude(8, RampWaveform(1500, -12, final_detuning), 0), "ising")
sequence.add(Pulse.ConstantDetuning(RampWaveform(500, 8, 0), final_detuning, 0), "ising")
sequence.measure("ground-rydberg")

# The command line reads the sequence from a file.
Path("sequence.json").write_text(sequence.to_abstract_repr(), encoding="utf-8")

with connect() as queue:  # finds the running `tweezer up`
    batch = queue.submit(
        sequence,
        [Job(runs=500, variables={"final_detuning": value}) for value in (-6, 0, 8, 16)],
        device="EMU_FREE",  # without it: the device that the sequence was built for
        name="first batch",
    )
    print("batch", batch.id)
    for job in batch.finished(timeout_s=120):
        bits, shots = max(job.counter.items(), key=lambda item: item[1])
        print(f"job {job.index}  {job.variables}  most frequent: {bits}, {shots} of 500 shots")
