"""The worker process: serves one device until a signal."""

from __future__ import annotations

import sys

from tweezer.adapters.lane.jail.libc import hide_process
from tweezer.adapters.lane.lane import LaneOptions
from tweezer.adapters.registry import get_specs, make_adapter
from tweezer.processes.runtime import run_on_a_loop
from tweezer.settings import Settings
from tweezer.store.connection import Store
from tweezer.worker.config import WorkerConfig
from tweezer.worker.worker import TicketWorker


def worker_config(settings: Settings) -> WorkerConfig:
    """Return the configuration of a worker, which the scheduler also uses."""
    return WorkerConfig(
        lease_s=settings.worker.lease_s,
        beat_s=settings.worker.heartbeat_s,
        drain_s=settings.worker.drain_s,
        store=settings.store_config(),
    )


def make_worker(
    settings: Settings, *, device: str, lanes: int, version: str, burst: bool = False, handle_signals: bool = True
) -> TicketWorker:
    """Make a worker. Raises InvalidInput for an unknown device, or one with unusable specs."""
    binding = settings.binding(device)
    options = LaneOptions(
        memory_limit_mb=settings.worker.memory_limit_mb or None,
        jail=settings.worker.jail,
        private=(str(settings.data_dir.absolute()), str(settings.results_folder())),
        prepare_timeout_s=settings.worker.prepare_timeout_s,
    )
    adapter = make_adapter(binding, options)
    if adapter.capabilities.exclusive:
        lanes = 1
    return TicketWorker(
        Store.open(settings.connect()),
        device,
        adapter,
        adapter_name=binding.adapter,
        specs=get_specs(device, binding),
        lanes=lanes,
        config=worker_config(settings),
        version=version,
        burst=burst,
        handle_signals=handle_signals,
    )


def run_worker(settings: Settings, *, device: str, lanes: int, version: str, burst: bool = False) -> None:
    """Serve a device until SIGTERM or SIGINT, then drain. In burst mode, end when no work is ready."""
    if sys.platform == "linux":
        hide_process()  # lanes run as the same user, and the environment contains credentials
    run_on_a_loop(lambda: make_worker(settings, device=device, lanes=lanes, version=version, burst=burst))
