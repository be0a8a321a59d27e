"""What every test may use."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads that wait for a busy core are slow

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"reference data not found at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def smoke_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the whole line in the smoke profile, by the command that a user types."""
    from capture_lib import cli

    out = tmp_path_factory.mktemp("smoke")
    assert cli.main(["run", "--profile", "smoke", "--out", str(out)]) == 0
    return out
