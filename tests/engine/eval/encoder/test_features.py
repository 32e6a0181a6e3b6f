"""The encoder that eval looks into: by name or inside a labeler, and what is refused."""

import numpy as np
import pytest
import torch

from malcli.config.evaluate import EvalConfig
from malcli.data.crops.label_crops import image_rois
from malcli.engine.eval.encoder.features import open_encoder
from malcli.errors import CheckpointError, ConfigError, RunError
from malcli.geometry.crops import crop_roi
from malcli.model.checkpoint import Checkpoint, save_checkpoint
from malcli.model.encoders import build_encoder
from malcli.model.labeler import Architecture, build_labeler

TINY = "timm/test_vit.r160_in1k"
ARCHITECTURE = Architecture(
    encoder=TINY,
    decoder="attention",
    crop_size=64,
    channels=8,
    key_pool="mean",
    key_layers=2,
    upsample_before=4,
    size_scaling=True,
)


@pytest.fixture(scope="module")
def labeler(tmp_path_factory):
    """A checkpoint of random values, and its networks."""
    torch.manual_seed(0)
    networks = build_labeler(ARCHITECTURE), build_labeler(ARCHITECTURE)
    path = tmp_path_factory.mktemp("labeler") / "tiny.safetensors"
    save_checkpoint(Checkpoint(*networks, ARCHITECTURE, (0.5, 0.5, 0.5)), path)
    return path, [network.eval() for network in networks]


def opened(tmp_path, **options):
    return open_encoder(EvalConfig(gt=tmp_path / "gt.json", device="cpu", **options))


def crops(side=64):
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)


def wanted_features(labeler, crops_BSS3):
    image = labeler.normalise(torch.from_numpy(crops_BSS3).permute(0, 3, 1, 2))
    with torch.no_grad():
        return labeler.encoder(image).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("network", "place"), [(None, 0), ("student", 0), ("teacher", 1)])
def test_features_are_those_of_the_labelers_own_encoder(labeler, tmp_path, network, place):
    path, networks = labeler
    found = opened(tmp_path, checkpoint=path, network=network)
    assert np.allclose(
        found.features(crops()), wanted_features(networks[place], crops()), atol=1e-5
    )
    assert found.to_json() == {
        "encoder": TINY,
        "weights": str(path),
        "network": network or "student",
        "crop_size": 64,
        "stride": 16,
        "margin": 0.4,
        "geometry": "exact",
    }


def test_random_weights_repeat_and_depend_on_the_seed(tmp_path):
    options = {"encoder": TINY, "weights": "none", "crop_size": "64"}
    first, again, other = (
        opened(tmp_path, **options, seed=seed).features(crops()) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_a_local_file_gives_its_weights(tmp_path):
    torch.manual_seed(5)
    encoder = build_encoder(TINY, 160).eval()
    path = tmp_path / "weights.pth"
    torch.save(encoder.body.state_dict(), path)
    found = opened(tmp_path, encoder=TINY, weights=str(path), crop_size="160")
    assert np.allclose(found.encoder.body.pos_embed, encoder.body.pos_embed.detach())
    assert found.to_json()["weights"] == str(path)


@pytest.mark.parametrize(("name", "side"), [(TINY, 512), ("timm/eva02_tiny_patch14_224", 518)])
def test_the_crop_size_is_512_rounded_to_the_stride(tmp_path, name, side):
    assert opened(tmp_path, encoder=name, weights="none").crop_size == side


def test_the_margin_is_that_of_label_or_the_users(labeler, tmp_path):
    assert opened(tmp_path, checkpoint=labeler[0], margin=1.0).margin == 1.0
    assert opened(tmp_path, encoder=TINY, weights="none", crop_size="64").margin == 0.4


def test_crops_are_those_that_label_makes(labeler, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    rows, xywh = np.array([7]), np.array([[0.0, 5, 20, 30]])
    for geometry, border in (("exact", "reflect"), ("released", "wrap")):
        found = opened(tmp_path, checkpoint=labeler[0], geometry=geometry)
        (roi,) = found.rois(image, rows, xywh)
        wanted = image_rois(image, rows, xywh, 0.4, geometry)[0]
        assert (roi.row, roi.roi.tolist()) == (7, wanted.roi.tolist())
        assert np.array_equal(found.crops([roi])[0], crop_roi(image, roi.roi, 64, border))


def test_what_cannot_be_opened_is_refused_with_the_remedy(labeler, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a labeler, .*--checkpoint"):
        opened(tmp_path, encoder=TINY, weights=str(labeler[0]), crop_size="64")
    with pytest.raises(ConfigError, match="--network mean"):
        opened(tmp_path, checkpoint=labeler[0], network="mean")
    for size in ("63", "0", "many"):
        with pytest.raises(ConfigError, match=f"--crop-size .?{size}"):
            opened(tmp_path, encoder=TINY, weights="none", crop_size=size)
    with pytest.raises(ConfigError, match="did you mean vit_mae_base"):
        opened(tmp_path, encoder="vit_mae_bas", weights="none")
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file"):
        opened(tmp_path, encoder=TINY, weights=str(tmp_path / "gone.pth"), crop_size="64")


def test_a_batch_that_does_not_fit_is_halved(labeler, tmp_path, monkeypatch):
    found = opened(tmp_path, checkpoint=labeler[0])
    wanted, forward = found.features(crops()), type(found.encoder).forward
    limit = 1

    def small(self, image_BCHW):
        if len(image_BCHW) > limit:
            raise torch.OutOfMemoryError
        return forward(self, image_BCHW)

    monkeypatch.setattr(type(found.encoder), "forward", small)
    assert np.allclose(found.features(crops()), wanted, atol=1e-5)
    limit = 0
    with pytest.raises(RunError, match="--crop-size 64: one crop needs more memory"):
        found.features(crops())


def test_features_that_are_no_numbers_stop_the_run(labeler, tmp_path):
    found = opened(tmp_path, checkpoint=labeler[0])
    with torch.no_grad():
        found.encoder.body.norm.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="no numbers"):
        found.features(crops())
