"""The whole suite runs against a Hub of its own, on this machine, and can reach no other.

`huggingface_hub` reads its settings when it is imported, so they are set here, before anything imports it.
"""

import gc
import os
import shutil
import socket
import sys
import tempfile
import time
import types
from pathlib import Path


TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

from hub_server import HubServer  # noqa: E402


HUB = HubServer()
HF_HOME = Path(tempfile.mkdtemp(prefix="hf_explain_tests_"))
CLIENT_ENVIRONMENT = {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": str(HF_HOME),
    "HF_HUB_DISABLE_XET": "1",  # the chunked protocol needs a compiled client; LFS over HTTP does not
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DOWNLOAD_TIMEOUT": "3",
    "HF_HUB_ETAG_TIMEOUT": "3",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "MPLBACKEND": "agg",
}
gc.disable()  # until everything is imported, which leaves nothing behind to collect
for variable in list(os.environ):
    if variable.startswith(("HF_", "HUGGING", "TRANSFORMERS_")):
        del os.environ[variable]
os.environ.update(CLIENT_ENVIRONMENT)

import pytest  # noqa: E402


OWNER, OWNER_TOKEN = "user", "hf_ownerSecretOwnerSecretOwnerSecret"
GUEST, GUEST_TOKEN = "guest", "hf_guestSecretGuestSecretGuestSecret"


def pytest_configure(config):
    HUB.__enter__()


def pytest_unconfigure(config):
    HUB.__exit__()
    shutil.rmtree(HF_HOME, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Tests that start processes come first: of several workers one gets them all, and starts one fork server."""
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)


def pytest_collection_finish():
    """What is imported stays: the garbage collections that every training run ends with need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Any connection that leaves this machine is an error, not a skipped test."""
    connect = socket.socket.connect

    def connect_locally(self, address):
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1", "0.0.0.0")
        if not local:
            raise OSError(f"tests must not use the network: connection to {address}")
        return connect(self, address)

    socket.socket.connect = connect_locally
    yield
    socket.socket.connect = connect


@pytest.fixture(autouse=True)
def charts_where_they_are_looked_at(request, monkeypatch):
    """The charts of a comparison take as long as all the rest of it; `@pytest.mark.charts` is for who looks."""
    report = sys.modules.get("hf_explain.evaluation.comparison_report")
    if report is not None and request.node.get_closest_marker("charts") is None:
        monkeypatch.setattr(report, "write_charts", lambda *args: None)


@pytest.fixture
def hub(monkeypatch):
    """
    An empty Hub with two users and an empty cache; this process is signed in as the first of them.

    The client's pauses between retries are written to `hub.waits` instead of being waited for.
    """
    import huggingface_hub.file_download
    import huggingface_hub.utils._http

    HUB.waits = []
    clock = types.SimpleNamespace(**{**vars(time), "sleep": HUB.waits.append})
    monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
    monkeypatch.setattr(huggingface_hub.file_download, "time", clock)
    HUB.reset()
    HUB.add_user(OWNER, OWNER_TOKEN)
    HUB.add_user(GUEST, GUEST_TOKEN)
    shutil.rmtree(HF_HOME / "hub", ignore_errors=True)
    monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)
    yield HUB
    HUB.reset()
