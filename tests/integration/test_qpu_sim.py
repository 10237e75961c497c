"""The client of a QPU's API with the simulated QPU, a separate process, in each of its misbehaviours."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pulser import Pulse, Register, Sequence
from pulser.devices import MockDevice
from tests.support.qpu_process import QpuProcess, some_context, submitted
from tests.support.waiting import until

from tweezer.adapters.remote.errors import (
    RemoteRefused,
    RemoteUnreachable,
    SubmitDeferred,
    SubmitRefused,
    SubmitUncertain,
    TooLate,
    UnknownRemoteJob,
)
from tweezer.adapters.remote.options import KeycloakOptions
from tweezer.adapters.remote.qpu.api import Operational, QpuApi, QpuJob
from tweezer.model.errors import InvalidInput, TweezerError
from tweezer.model.lifecycle import JobStatus
from tweezer.qpu_sim.journal import JournalEvent, read_journal

SECRET = "known-to-few"


def sequence(atoms: int = 3, *, variable: bool = False) -> str:
    register = Register({f"q{place}": (7.0 * place, 0.0) for place in range(atoms)})
    made = Sequence(register, MockDevice)
    made.declare_channel("ch", "rydberg_global")
    amplitude = made.declare_variable("omega", dtype=float) if variable else 3.0
    made.add(Pulse.ConstantPulse(300, amplitude, 0.0, 0.0), "ch")
    made.measure("ground-rydberg")
    return made.to_abstract_repr()


SEQUENCE = sequence()


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QpuProcess]:
    with QpuProcess(tmp_path_factory.mktemp("qpu")) as process:
        yield process


@pytest.fixture
def qpu(_shared: QpuProcess) -> QpuProcess:
    """A simulated QPU without misbehaviours and without a history."""
    _shared.misbehave(job_seconds="0", shot_seconds=0, answer_seconds="0", down=[])
    _shared.misbehave(
        **dict.fromkeys(("fail", "hang", "lose_replies", "submit_errors", "read_errors", "late_cancels"), 0)
    )
    _shared.ask("POST", "/sim/reset")
    return _shared


@pytest.fixture
async def api(qpu: QpuProcess) -> AsyncIterator[QpuApi]:
    async with qpu.api() as client:
        yield client


async def ended(api: QpuApi, uid: int) -> QpuJob:
    """Poll a job until its end."""

    async def is_terminal() -> bool:
        return (await api.get_job(uid)).status.terminal

    await until(is_terminal, f"the end of job {uid}")
    return await api.get_job(uid)


async def begun(api: QpuApi, uid: int) -> None:
    async def runs() -> bool:
        return (await api.get_job(uid)).status is JobStatus.RUNNING

    await until(runs, f"the begin of job {uid}")


# --- its name and its jobs


async def test_it_reports_its_name_and_that_it_is_up(api: QpuApi) -> None:
    specs = json.loads(await api.get_specs())
    assert (specs["name"], specs["max_runs"], specs["is_virtual"]) == ("QPU_SIM", 2000, False)
    assert await api.get_status() is Operational.UP


async def test_a_job_runs_to_its_end_and_has_a_bitstring_for_each_run(qpu: QpuProcess, api: QpuApi) -> None:
    context = some_context()
    job = await submitted(api, SEQUENCE, nb_run=250, context=context)
    assert (job.status, job.pasqman_job_id, job.batch_id) == (
        JobStatus.PENDING,
        context.pasqman_job_id,
        context.batch_id,
    )
    done = await ended(api, job.uid)
    counter = done.counter()
    assert done.status is JobStatus.DONE
    assert counter is not None
    assert sum(counter.values()) == 250
    assert {len(bits) for bits in counter} == {3}
    assert qpu.ask("GET", f"/api/v1/programs/{done.program_id}")["data"]["status"] == "DONE"
    count = qpu.counts()[context.pasqman_job_id]
    assert (count.submits, count.begins, count.cancels, count.ended) == (1, 1, 0, {"DONE": 1})
    assert count.asked_by == ["test"]


async def test_equal_seeds_give_equal_counters(tmp_path: Path, qpu: QpuProcess, api: QpuApi) -> None:
    async def first(client: QpuApi) -> dict[str, int] | None:
        return (await ended(client, (await submitted(client, SEQUENCE)).uid)).counter()

    with QpuProcess(tmp_path) as equal:
        async with equal.api() as other:
            assert await first(other) == await first(api)
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    with QpuProcess(other_folder, "--seed", "1") as different:
        async with different.api() as other:
            qpu.ask("POST", "/sim/reset")
            assert await first(other) != await first(api)


@pytest.mark.emulator
async def test_without_fake_an_emulator_computes_the_measurements(tmp_path: Path) -> None:
    with QpuProcess(tmp_path, fake=False) as emulated:
        async with emulated.api() as api:
            first = await submitted(api, SEQUENCE, nb_run=500)
            done = await ended(api, first.uid)
            assert done.status is JobStatus.DONE
            counter = done.counter()
            assert counter is not None
            assert sum(counter.values()) == 500
            assert not any("11" in bits for bits in counter)  # the Rydberg blockade at 7 µm
            stopped = await submitted(api, sequence(11))
            displacing = await submitted(api, SEQUENCE, nb_run=10)
            assert (await ended(api, displacing.uid)).status is JobStatus.DONE
            assert (await api.get_job(stopped.uid)).status is JobStatus.CANCELED


async def test_it_listens_and_stops_at_a_signal(tmp_path: Path) -> None:
    with QpuProcess(tmp_path) as quick:
        async with quick.api() as api:
            await api.get_status()
            assert quick.stop() == 0
        assert "Error" not in quick.text


# --- refusals


@pytest.mark.parametrize("nb_run", [0, 2001])
async def test_runs_that_the_device_does_not_allow_are_refused(api: QpuApi, nb_run: int) -> None:
    with pytest.raises(SubmitRefused, match="nb_run: must be between 1 and 2000"):
        await submitted(api, SEQUENCE, nb_run=nb_run)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "is not a serialised Pulser sequence"),
        (sequence(variable=True), "must be built: it must have no variables"),
        (sequence(81), r"must have at most 80 atoms \(got 81\)"),
    ],
    ids=["junk", "variables", "atoms"],
)
async def test_sequences_that_cannot_run_are_refused_and_not_counted(
    qpu: QpuProcess, api: QpuApi, text: str, problem: str
) -> None:
    with pytest.raises(SubmitRefused, match=problem) as raised:
        await submitted(api, text)
    assert not raised.value.retryable
    assert qpu.counts() == {}


async def test_a_missing_job_is_unknown(qpu: QpuProcess, api: QpuApi) -> None:
    for call in (api.get_job, api.cancel):
        with pytest.raises(UnknownRemoteJob):
            await call(4711)
    assert qpu.ask("GET", "/api/v1/programs/4711")["status"] == "fail"


# --- one job at a time


async def test_a_new_submit_cancels_the_running_job(qpu: QpuProcess, api: QpuApi) -> None:
    qpu.misbehave(job_seconds="60")
    first, second = some_context(), some_context()
    displaced = await submitted(api, SEQUENCE, context=first)
    await begun(api, displaced.uid)
    running = await submitted(api, SEQUENCE, context=second)
    assert (await api.get_job(displaced.uid)).status is JobStatus.CANCELED
    await begun(api, running.uid)
    counts = qpu.counts()
    assert (counts[first.pasqman_job_id].displaced, counts[first.pasqman_job_id].cancels) == (1, 0)
    (line,) = [line for line in read_journal(qpu.journal) if line.displaced_by == running.uid]
    assert (line.event, line.job) == (JournalEvent.CANCEL, first.pasqman_job_id)


async def test_a_cancelled_job_keeps_its_measurements(qpu: QpuProcess, api: QpuApi) -> None:
    qpu.misbehave(shot_seconds=0.002)
    job = await submitted(api, SEQUENCE, nb_run=2000)

    async def measured() -> bool:
        return sum(((await api.get_job(job.uid)).counter() or {}).values()) >= 20

    await until(measured, "some bitstrings")
    stopped = await api.cancel(job.uid)
    kept = sum((stopped.counter() or {}).values())
    assert stopped.status is JobStatus.CANCELED
    assert 20 <= kept < 2000
    assert (await api.get_job(job.uid)).counter() == stopped.counter()
    assert qpu.counts()[job.pasqman_job_id or ""].cancels == 1


async def test_a_cancel_that_comes_too_late_is_reported(qpu: QpuProcess, api: QpuApi) -> None:
    job = await submitted(api, SEQUENCE)
    await ended(api, job.uid)
    with pytest.raises(TooLate):
        await api.cancel(job.uid)
    qpu.misbehave(late_cancels=1, shot_seconds=0.001)
    job = await submitted(api, SEQUENCE, nb_run=500)
    with pytest.raises(TooLate):
        await api.cancel(job.uid)
    assert (await ended(api, job.uid)).status is JobStatus.DONE
    count = qpu.counts()[job.pasqman_job_id or ""]
    assert (count.cancels, count.late_cancels, count.ended) == (1, 1, {"DONE": 1})


# --- misbehaviours


async def test_jobs_fail_and_hang_with_the_requested_probability(qpu: QpuProcess, api: QpuApi) -> None:
    qpu.misbehave(fail=0.5)
    ends = [(await ended(api, (await submitted(api, SEQUENCE)).uid)).status for _ in range(40)]
    assert 8 <= ends.count(JobStatus.ERROR) <= 32
    assert set(ends) == {JobStatus.ERROR, JobStatus.DONE}
    qpu.misbehave(fail=0, hang=1)
    hanging = await submitted(api, SEQUENCE)
    await begun(api, hanging.uid)
    assert (await api.cancel(hanging.uid)).status is JobStatus.CANCELED


async def test_jobs_are_refused_while_it_is_down(qpu: QpuProcess, api: QpuApi) -> None:
    qpu.ask("PUT", "/sim/status", {"operational_status": "DOWN"})
    assert await api.get_status() is Operational.DOWN
    with pytest.raises(SubmitRefused, match="the operational status is DOWN"):
        await submitted(api, SEQUENCE)
    qpu.ask("PUT", "/sim/status", {"operational_status": None})
    assert await api.get_status() is Operational.UP
    await submitted(api, SEQUENCE)


async def test_down_times_begin_and_end(tmp_path: Path) -> None:
    with QpuProcess(tmp_path, "--down", "0:1.5") as down:
        async with down.api() as api:
            assert await api.get_status() is Operational.DOWN

            async def up() -> bool:
                return await api.get_status() is Operational.UP

            await until(up, "the end of the window")


async def test_after_a_lost_reply_the_submit_is_uncertain_and_the_job_exists(qpu: QpuProcess, api: QpuApi) -> None:
    qpu.misbehave(lose_replies=1)
    context = some_context()
    with pytest.raises(SubmitUncertain, match="may have been created"):
        await submitted(api, SEQUENCE, context=context)
    count = qpu.counts()[context.pasqman_job_id]
    assert (count.submits, count.lost_replies) == (1, 1)
    assert (await ended(api, 1)).pasqman_job_id == context.pasqman_job_id


async def test_after_a_server_error_the_submit_is_uncertain_and_no_job_exists(qpu: QpuProcess, api: QpuApi) -> None:
    qpu.misbehave(submit_errors=1)
    with pytest.raises(SubmitUncertain, match="returned 500"):
        await submitted(api, SEQUENCE)
    assert qpu.counts() == {}


async def test_after_a_timeout_the_submit_is_uncertain(qpu: QpuProcess) -> None:
    qpu.misbehave(answer_seconds="30")
    context = some_context()
    async with qpu.api(submit_timeout_s=0.5, read_timeout_s=0.3, retry_s=0) as api:
        with pytest.raises(SubmitUncertain, match="did not answer the submit"):
            await submitted(api, SEQUENCE, context=context)
        with pytest.raises(RemoteUnreachable, match="no answer from"):
            await api.get_status()
    assert qpu.counts()[context.pasqman_job_id].submits == 1


async def test_reads_are_retried_and_submits_are_not(qpu: QpuProcess, api: QpuApi) -> None:
    qpu.misbehave(read_errors=0.6)
    job = await submitted(api, SEQUENCE)
    for _ in range(5):
        assert (await api.get_job(job.uid)).uid == job.uid
    qpu.misbehave(read_errors=1)
    async with qpu.api(retry_s=0.5) as hasty:
        with pytest.raises(RemoteUnreachable, match="GET /jobs/1: the QPU's API returned 500"):
            await hasty.get_job(job.uid)
    assert qpu.counts()[job.pasqman_job_id or ""].submits == 1


async def test_nothing_is_sent_if_the_last_check_fails(qpu: QpuProcess, api: QpuApi) -> None:
    def lost() -> None:
        raise TweezerError("the lease is lost")

    with pytest.raises(TweezerError, match="the lease is lost"):
        await api.submit(nb_run=1, pulser_sequence=SEQUENCE, context=some_context(), before_send=lost)
    looks: list[bool] = []
    job = await api.submit(
        nb_run=1, pulser_sequence=SEQUENCE, context=some_context(), before_send=lambda: looks.append(True)
    )
    assert (job.uid, looks) == (1, [True])


async def test_a_submit_to_a_closed_port_may_be_sent_again(tmp_path: Path) -> None:
    with QpuProcess(tmp_path) as gone:
        gone.kill()
        async with gone.api(retry_s=0.2) as api:
            with pytest.raises(SubmitDeferred, match="cannot be reached") as raised:
                await submitted(api, SEQUENCE)
            assert raised.value.retryable
            with pytest.raises(RemoteUnreachable):
                await api.get_status()


# --- its journal


async def test_jobs_survive_a_restart_and_the_running_one_has_failed(tmp_path: Path) -> None:
    with QpuProcess(tmp_path) as process:
        async with process.api() as api:
            done = await ended(api, (await submitted(api, SEQUENCE)).uid)
            process.misbehave(hang=1)
            running = await submitted(api, SEQUENCE)
            await begun(api, running.uid)
            process.kill()
            before = process.read_tallies()
            process.start()
            again = await api.get_job(done.uid)
            assert (again.status, again.counter(), again.end_datetime) == (
                JobStatus.DONE,
                done.counter(),
                done.end_datetime,
            )
            assert again.context == done.context
            assert (await api.get_job(running.uid)).status is JobStatus.ERROR
            assert (await submitted(api, SEQUENCE)).uid == running.uid + 1
            job = running.pasqman_job_id or ""
            assert (before[job].ended, process.read_tallies()[job].ended) == ({}, {"ERROR": 1})
            assert process.counts()[job].submits == 1
        times = [line.t for line in read_journal(process.journal)]
        assert times == sorted(times)


def test_a_file_that_is_not_a_journal_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "qpu.jsonl"
    file.write_text("dear diary\n")
    with pytest.raises(AssertionError, match=r"is not a journal of tweezer qpu-sim.*; choose another file"):
        QpuProcess(tmp_path)
    assert file.read_text() == "dear diary\n"


# --- tokens and TLS


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QpuProcess]:
    """A QPU that requires tokens, which are valid for a second."""
    folder = tmp_path_factory.mktemp("guarded")
    with QpuProcess(folder, "--token-auth", f"tweezer:{SECRET}", "--token-seconds", "1") as process:
        yield process


def keycloak(process: QpuProcess, secret: str = SECRET) -> KeycloakOptions:
    return KeycloakOptions(process.url, "qpu", "tweezer", client_secret=secret)


async def test_without_a_token_every_request_is_refused(guarded: QpuProcess) -> None:
    async with guarded.api() as api:
        with pytest.raises(RemoteRefused, match="401"):
            await api.get_status()
        with pytest.raises(SubmitDeferred, match="401"):
            await submitted(api, SEQUENCE)


async def test_tokens_are_fetched_anew_when_they_expire_or_are_revoked(guarded: QpuProcess) -> None:
    async with guarded.api(keycloak=keycloak(guarded)) as api:
        first = await submitted(api, SEQUENCE)
        guarded.ask("POST", "/sim/revoke")
        second = await submitted(api, SEQUENCE)
        assert second.uid == first.uid + 1
        guarded.ask("POST", "/sim/revoke")
        assert (await api.get_job(second.uid)).uid == second.uid
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            await asyncio.gather(*(api.get_status() for _ in range(5)))
    counts = guarded.counts()
    assert all(counts[job.pasqman_job_id or ""].submits == 1 for job in (first, second))


async def test_wrong_credentials_are_reported_without_the_secret(guarded: QpuProcess) -> None:
    async with guarded.api(keycloak=keycloak(guarded, "guessed-secret")) as api:
        with pytest.raises(RemoteRefused, match=r"no token for the client tweezer .* check realm") as read:
            await api.get_status()
        with pytest.raises(SubmitDeferred, match="no token for the client tweezer") as submit:
            await submitted(api, SEQUENCE)
    assert "guessed" not in f"{read.value!r}{submit.value!r}{api._options!r}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a self-signed certificate of 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "qpu")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_file = folder / "qpu.pem", folder / "qpu.key"
    pem.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    unencrypted = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted))
    return pem, key_file


async def test_a_certificate_is_checked_against_a_file_or_not_at_all(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    pem, key = certificate
    with QpuProcess(tmp_path, "--tls-cert", str(pem), "--tls-key", str(key), tls_ca=pem) as process:
        assert process.url.startswith("https://")
        for options in ({"tls_ca_file": str(pem)}, {"tls_verify": False}):
            async with process.api(**options) as api:
                assert await api.get_status() is Operational.UP
                await submitted(api, SEQUENCE)
        async with process.api(retry_s=0) as api:
            with pytest.raises(RemoteUnreachable, match="certificate"):
                await api.get_status()
            with pytest.raises(SubmitDeferred, match="certificate"):
                await submitted(api, SEQUENCE)
        with pytest.raises(InvalidInput, match=r"tls_ca_file: .* cannot be used"):
            process.api(tls_ca_file=str(key))
