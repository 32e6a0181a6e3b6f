"""Which runs of `fit` may be resumed with which settings."""

from dataclasses import fields, replace

import pytest

from malcli.config.fit import FitConfig
from malcli.engine.fit.run_folder import choose_run, prepare_folder
from malcli.errors import OutputError

# Settings that a resumed run may change: where things are, how far it goes, what is written when.
FREE = {
    "resume", "overwrite", "allow_world_change", "out", "epochs", "max_steps", "device",
    "num_processes", "workers", "val", "val_images", "images", "data", "log_every", "save_every",
    "pictures_every", "val_every", "weights", "threshold", "grad_checkpointing",
}  # fmt: skip


@pytest.fixture
def started(tmp_path):
    """Returns the settings of a run of which nothing but the folder is there yet."""
    for name in ("boxes", "another"):
        (tmp_path / f"{name}.json").write_text("[]")
    paths = {"data": tmp_path / "boxes.json", "paste": tmp_path / "boxes.json"}
    return FitConfig(**paths, out=tmp_path / "run", encoder="vit/192x12")


@pytest.mark.parametrize("name", sorted(FREE | {item.name for item in fields(FitConfig)}))
def test_every_setting_ends_a_run_or_is_free(started, tmp_path, another, name):
    value = tmp_path / "another.json" if name in ("data", "paste") else another(started, name)
    prepare_folder(started.out, replace(started, **{name: value}), continued=False)
    resumed = replace(started, resume=True)
    if name in FREE:
        assert choose_run(resumed) == (started.out, True)
    else:
        with pytest.raises(OutputError, match=f"belongs to another run: {name} was "):
            choose_run(resumed)


@pytest.mark.parametrize("name", ["data", "paste"])
def test_an_input_that_changed_ends_a_run(started, tmp_path, name):
    paths = {"data": tmp_path / "boxes.json", "paste": tmp_path / "another.json"}
    config = replace(started, **paths)
    prepare_folder(config.out, config, continued=False)
    paths[name].write_text("[ ]")
    with pytest.raises(OutputError, match=f"belongs to another run: {name} changed; give"):
        prepare_folder(config.out, replace(config, resume=True), continued=True)
