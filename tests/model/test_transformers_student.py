import importlib

import pytest
import torch
from torch.nn import functional as F

from malcli.errors import CheckpointError, ConfigError
from malcli.model import transformers_models
from malcli.model.student import build_student, check_student, without_masks

transformers = pytest.importorskip("transformers")
pytest.importorskip("scipy")
KINDS = "mask2former", "rf_detr"
SIDES = 64, 96
CLASSES = 3


def build(folder, weights="none"):
    torch.manual_seed(5)
    return build_student(str(folder), CLASSES, *SIDES, weights)


def target(count, hw):
    mask = torch.zeros((count, *hw), dtype=torch.uint8)
    mask[:, 10:30, 12:40] = 1
    boxes = torch.tensor([[12.0, 10, 40, 30]]).repeat(count, 1)
    return {"boxes": boxes, "labels": torch.arange(1, count + 1), "masks": mask}


IMAGES_HW = (64, 64), (60, 80)


def batch(first, second):
    torch.manual_seed(1)
    images = [torch.rand(3, *hw) for hw in IMAGES_HW]
    return images, [target(n, hw) for n, hw in zip((first, second), IMAGES_HW, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [(2, 3), (2, 0), (0, 0)])
def test_the_loss_is_one_finite_number_even_without_instances(tiny_models, kind, counts):
    losses = build(tiny_models[kind])(*batch(*counts))
    (loss,) = losses.values()
    assert loss.ndim == 0
    assert torch.isfinite(loss)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_is_learnt_gets_a_gradient(tiny_models, kind):
    student = build(tiny_models[kind])
    sum(student(*batch(2, 3)).values()).backward()
    lost = [
        key for key, one in student.named_parameters() if one.requires_grad and one.grad is None
    ]
    assert not lost


@pytest.mark.parametrize("kind", KINDS)
def test_detections_have_the_sizes_of_their_images_and_labels_from_1(tiny_models, kind):
    student = build(tiny_models[kind]).eval()
    images, _ = batch(1, 1)
    with torch.inference_mode():
        found = student(images)
    for one, (h, w) in zip(found, IMAGES_HW, strict=True):
        assert one["masks"].shape[1:] == (1, h, w)
        assert len(one["masks"]) == len(one["boxes"]) == len(one["scores"]) == len(one["labels"])
        assert len(one["boxes"]) > 0
        assert set(one["labels"].tolist()) <= {1, 2, 3}
        assert (one["scores"].diff() <= 0).all()
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([w, h, w, h])).all()


def test_mask2former_finds_what_its_queries_say_in_the_images_own_pixels(tiny_models):
    student = build(tiny_models["mask2former"]).eval()
    hw, size_hw = (96, 128), (48, 60)
    logits = torch.full((1, 2, 24, 32), -9.0)
    logits[0, 1, 4:12, 6:15] = 9.0  # cells of 4 pixels; the image covers 96 x 120 of 96 x 128
    classes = torch.tensor([[[0.0, 0, 0, 9], [0, 9, 0, 0]]])
    said = type("Out", (), {"class_queries_logits": classes, "masks_queries_logits": logits})
    found = student._found(said, 0, hw, (96, 120), size_hw)
    assert found["labels"][0] == 2
    assert found["scores"][0] > 0.9
    mask = torch.zeros(size_hw)
    mask[8:24, 12:30] = 1
    assert torch.equal((found["masks"][0, 0] >= 0.5).float(), mask)
    assert found["boxes"][0].tolist() == [12, 8, 30, 24]


def test_rf_detr_finds_boxes_relative_to_the_image(tiny_models):
    student = build(tiny_models["rf_detr"]).eval()
    logits = torch.tensor([[[-9.0, -9, -9], [-9, -9, 4]]])
    boxes = torch.tensor([[[0.5, 0.5, 1, 1], [0.5, 0.25, 0.5, 0.5]]])
    masks = torch.stack([torch.full((16, 16), -9.0), torch.full((16, 16), 9.0)])[None]
    said = type("Out", (), {"logits": logits, "pred_boxes": boxes, "pred_masks": masks})
    found = student._found(said, 0, (64, 64), (64, 64), (40, 80))
    assert found["labels"][0] == 3
    assert found["scores"][0] == torch.sigmoid(torch.tensor(4.0))
    assert found["boxes"][0].tolist() == [20, 0, 60, 20]
    assert (found["masks"][0] >= 0.5).all()


def test_rf_detr_takes_squares_of_whole_windows(tiny_models):
    student = build(tiny_models["rf_detr"])
    images, targets = batch(1, 1)
    pixels = student.transform(images, targets)[0].tensors
    assert pixels.shape == (2, 3, 64, 64)  # of 70, in windows of 2 patches of 8


def test_images_are_normalised_as_imagenet_and_masks_follow_their_image(tiny_models):
    student = build(tiny_models["mask2former"])
    images, targets = batch(1, 1)
    made, resized = student.transform(images, targets)
    mean = torch.tensor(transformers_models.MEAN).view(3, 1, 1)
    std = torch.tensor(transformers_models.STD).view(3, 1, 1)
    assert torch.allclose(made.tensors[0, :, :64, :64], (images[0] - mean) / std, atol=1e-5)
    h, w = made.image_sizes[1]
    wanted = F.interpolate(targets[1]["masks"][None].float(), size=(h, w), mode="nearest")[0]
    assert torch.equal(resized[1]["masks"].float(), wanted)


def test_random_weights_are_those_of_the_seed_and_a_folders_own_are_taken(tiny_models, tmp_path):
    one, two = build(tiny_models["mask2former"]), build(tiny_models["mask2former"])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    one.network.save_pretrained(tmp_path)
    again = build_student(str(tmp_path), CLASSES + 4, *SIDES, None)
    state = again.network.state_dict()
    other = {
        key for key, value in one.network.state_dict().items() if state[key].shape != value.shape
    }
    assert other
    assert all("class" in key or "criterion" in key for key in other)
    assert all(
        torch.equal(value, state[key])
        for key, value in one.network.state_dict().items()
        if key not in other
    )


def test_boxes_alone_is_rf_detrs_detector_and_nothing_for_mask2former(tiny_models):
    whole, bare = build(tiny_models["rf_detr"]), without_masks(build(tiny_models["rf_detr"]))
    inner = dict(whole.network.model.named_parameters())
    left = dict(bare.network.named_parameters())
    assert left.keys() == inner.keys()
    assert all(torch.equal(value, inner[key]) for key, value in left.items())
    sum(bare(*batch(2, 3)).values()).backward()
    assert "masks" not in bare.eval()(batch(1, 1)[0])[0]
    with pytest.raises(ConfigError, match="Mask2Former learns masks alone"):
        without_masks(build(tiny_models["mask2former"]))


def test_models_of_other_kinds_and_broken_folders_are_one_line(tmp_path, tiny_models):
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"is a bert; take one of mask2former, rf_detr"):
        build(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty.*needs config\.json"):
        build(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"needs config\.json and model\.safetensors"):
        build(tiny_models["mask2former"], weights=None)
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="empty"):
        build(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"--weights .*bert.*is no backbone|holds no model"):
        build(tiny_models["mask2former"], weights=str(tmp_path / "bert"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbones_folder_gives_the_backbone_and_nothing_else(tiny_models, tmp_path, kind):
    torch.manual_seed(9)
    inner = transformers.AutoConfig.from_pretrained(tiny_models[kind]).backbone_config
    backbone = transformers.AutoBackbone.from_config(inner)
    backbone.save_pretrained(tmp_path)
    plain = build(tiny_models[kind]).network
    student = build(tiny_models[kind], weights=str(tmp_path)).network
    place = transformers_models._backbone
    for key, value in place(student).state_dict().items():
        assert torch.equal(value, backbone.state_dict()[key])
    assert not all(
        torch.equal(a, b)
        for a, b in zip(place(plain).parameters(), place(student).parameters(), strict=True)
    )
    class_key = "class_predictor.weight" if kind == "mask2former" else "model.class_embed.weight"
    assert torch.equal(plain.state_dict()[class_key], student.state_dict()[class_key])


def test_a_hub_out_of_reach_names_the_ways_out():
    with pytest.raises(CheckpointError, match=r"local folder.*HF_HOME.*--weights none"):
        build_student("facebook/mask2former-swin-small-coco-instance", 3, *SIDES, None)


def test_without_the_extra_its_install_line_is_named(monkeypatch):
    def missing(name, *rest):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"needs transformers .*malcli\[students\]"):
        check_student("facebook/mask2former-swin-small-coco-instance")
