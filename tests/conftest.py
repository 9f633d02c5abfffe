"""Shared fixtures: two compute threads, and small real data."""

from __future__ import annotations

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _clean_world() -> None:
    """Start every test from Pyro's and torch's defaults; what a test leaves behind must not reach the next."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
