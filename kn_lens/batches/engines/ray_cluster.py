"""Starting Ray on this machine, or joining a cluster that runs; quiet, and quick to say what is wrong."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from typing import Any

from kn_lens.errors import SettingsError

_PATIENCE = 15
"""Seconds that a cluster has to answer."""
_STORE = 80 * 2**20
"""Bytes of a local Ray's object store, about the least it takes: nothing large goes through Ray."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


def import_ray() -> Any:
    os.environ.update(_QUIET)
    try:
        import ray
    except ImportError:
        raise SettingsError("the Ray engine needs Ray: pip install 'kn-lens[ray]'") from None
    return ray


def connect(ray: Any, address: str | None, cpus: int) -> None:
    """Start a local Ray, or join the cluster at an address."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    if address is None:
        options |= {"address": "local", "num_cpus": cpus, "object_store_memory": _STORE}
    else:
        _check_cluster(address)
        options = {**options, "address": address, "include_dashboard": None}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError, …
        raise SettingsError(f"Ray cannot be started: {_last_line(str(error))}") from error


def _check_cluster(address: str) -> None:
    """Check that a cluster answers, in seconds: Ray itself would try for a minute, and may end the process.

    Raises:
        SettingsError: If none does.
    """
    advice = "start one with 'ray start --head', or leave the address away for a Ray of this machine's own"
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or "/" in address:
            raise SettingsError(f"the address of a Ray cluster is host:port or auto, not {address!r}; {advice}")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SettingsError(f"no Ray cluster answers at {address} ({reason}); {advice}") from None
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, address], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        # Ray sends its token only to clusters that it found itself; to others it goes if the user says so.
        token = "; if the cluster asks for a token, set RAY_AUTH_MODE=token" if address != "auto" else ""
        raise SettingsError(f"no Ray cluster answers at {address} within {_PATIENCE} s{token}; {advice}") from None
    if probe.returncode:
        reason = _last_line(probe.stderr)
        raise SettingsError(f"no Ray cluster can be joined at {address} ({reason}); {advice}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1].strip()
