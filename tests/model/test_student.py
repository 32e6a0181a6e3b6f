import urllib.request

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from malcli.errors import CheckpointError, ConfigError
from malcli.model.student import build_student, check_student, without_masks

NAME = "maskrcnn_resnet50_fpn_v2"


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(1)
    return dict(resnet50(weights=None).state_dict())


@pytest.mark.parametrize(
    "form", ["resnet.safetensors", "resnet.pth", "nested.pth", "detector.safetensors"]
)
def test_backbone_weights_of_a_local_file_are_taken_and_its_first_layers_frozen(
    resnet, tmp_path, form
):
    path = tmp_path / form
    if form == "detector.safetensors":
        save_file({f"backbone.body.{key}": value for key, value in resnet.items()}, path)
    elif form.endswith("safetensors"):
        save_file(resnet, path)
    else:
        torch.save({"state_dict": resnet} if form == "nested.pth" else resnet, path)
    body = build_student(NAME, 3, 64, 64, str(path)).backbone.body
    state = body.state_dict()
    assert all(torch.equal(value, resnet[key]) for key, value in state.items())
    still = {key.partition(".")[0] for key, one in body.named_parameters() if not one.requires_grad}
    assert still == {"conv1", "bn1", "layer1"}


def test_random_weights_are_those_of_the_seed_and_all_are_learnt():
    students = []
    for _ in range(2):
        torch.manual_seed(5)
        students.append(build_student(NAME, 3, 64, 64, "none"))
    one, two = (student.state_dict() for student in students)
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert all(value.requires_grad for value in students[0].parameters())
    assert one["roi_heads.mask_predictor.mask_fcn_logits.weight"].shape[0] == 3 + 1
    bare = without_masks(students[1]).state_dict()
    assert bare.keys() == {key for key in one if "mask" not in key}
    assert all(torch.equal(value, one[key]) for key, value in bare.items())


def test_weights_of_another_network_are_named(tmp_path, resnet):
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": resnet["conv1.weight"][:, :1].contiguous()}, path)
    with pytest.raises(CheckpointError, match=r"other\.safetensors: no weights of a ResNet-50"):
        build_student(NAME, 3, 64, 64, str(path))


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_weights_are_one_line(tmp_path, content, suffix):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"bad{suffix}"):
        build_student(NAME, 3, 64, 64, str(path))


def test_a_hub_out_of_reach_names_three_ways_out(tmp_path, monkeypatch):
    def unreachable(*args, **options):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"--weights FILE.*TORCH_HOME.*--weights none"):
        build_student(NAME, 3, 64, 64, None)


def test_weights_in_torchs_cache_need_no_hub(tmp_path, monkeypatch, resnet):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save(resnet, folder / "resnet50-0676ba61.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    student = build_student(NAME, 3, 64, 64, None)
    assert torch.equal(student.backbone.body.conv1.weight, resnet["conv1.weight"])


def test_unknown_students_name_the_nearest_and_those_of_transformers():
    with pytest.raises(ConfigError, match=f"did you mean '{NAME}'.*Mask2Former or RF-DETR-Seg"):
        check_student("maskrcnn_resnet50_fpn")
