"""What every test shares: drawn scenes, one thread a process, no network."""

import os

# Before torch is imported: two workers on two cores must not start a thread pool each.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
# Subprocesses of tests do not see the socket blocker below.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MALCLI_CACHE"] = "off"  # of the user who runs the tests

import socket

import pytest

from malcli.data.scenes import Scenes, draw_scenes

LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost", "", None, b"localhost")


def pytest_configure(config: pytest.Config) -> None:
    """Let pass the one warning that a dependency's compiled code raises on every decoded mask."""
    # pycocotools 2.0.11 decodes with NumPy 1's __array__ signature; nothing for us to change.
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning"
    )


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Six drawn scenes of 72x96 pixels with exact masks; read only."""
    folder = tmp_path_factory.mktemp("scenes")
    return draw_scenes(folder, 6, seed=3, size_hw=(72, 96), split="val", objects=(2, 4))


@pytest.fixture(scope="session")
def train_scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Eight drawn scenes of 96x96 pixels to fit on; read only."""
    folder = tmp_path_factory.mktemp("train_scenes")
    return draw_scenes(folder, 8, seed=4, size_hw=(96, 96), split="train", objects=(2, 4))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that would leave this machine."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if self.family != socket.AF_UNIX and host not in LOCAL_HOSTS:
            raise OSError(f"tests use no network: {address}")
        connect(self, address)  # type: ignore[arg-type]

    def guarded_lookup(host: object, *args: object, **kwargs: object) -> object:
        if host not in (*LOCAL_HOSTS, socket.gethostname()):
            raise socket.gaierror(f"tests use no network: {host!r}")
        return lookup(host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)
