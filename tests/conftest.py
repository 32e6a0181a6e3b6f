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
from hypothesis import settings

from malcli.data.scenes import Scenes, draw_scenes

# A loaded machine is slow, not wrong.
settings.register_profile("malcli", deadline=None)
settings.load_profile("malcli")

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


def mask2former_config(transformers):
    backbone = transformers.SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=10,
        train_num_points=128,
    )


def rf_detr_config(transformers):
    backbone = transformers.RfDetrDinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=70,
        patch_size=8,
        num_windows=2,
        out_features=["stage1", "stage2"],
    )
    return transformers.RfDetrConfig(
        backbone_config=backbone,
        d_model=32,
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        num_queries=10,
        group_detr=2,
        mask_downsample_ratio=4,
    )


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders of tiny models of transformers: {kind: folder with config.json alone}."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    made = {}
    for kind, config in (("mask2former", mask2former_config), ("rf_detr", rf_detr_config)):
        made[kind] = tmp_path_factory.mktemp(kind)
        config(transformers).save_pretrained(made[kind])
    return made
