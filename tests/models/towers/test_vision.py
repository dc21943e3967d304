"""Vision towers against timm's own forward, pixel arithmetic, and what a user who mistypes a name reads."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mmsr_pt.batch import ImageSpec
from mmsr_pt.log import UserError
from mmsr_pt.models.towers.tower import Activations
from mmsr_pt.models.towers.vision import TinyVision, build_vision_tower, vision_tower_from_config
from tests.conftest import real_weights
from tests.models.towers.small import TIMM_STEPPED, TIMM_WHOLE, perturb, pictures, relative_error, timm_tower


@pytest.fixture
def small_vit(tmp_path):
    """A directory as timm publishes one: configuration with statistics of its own, arguments, weights with a head."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5, init_values=0.1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "test_vit",
        "num_classes": 5,
        "model_args": {"init_values": 0.1, "num_classes": 5},
        "pretrained_cfg": {
            "input_size": [3, 160, 160],
            "fixed_input_size": True,
            "interpolation": "lanczos",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "num_classes": 5,
            "classifier": "head",
            "first_conv": "patch_embed.proj",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("name", [*TIMM_STEPPED, *TIMM_WHOLE])
def test_equals_timms_own_features_as_tokens(name):
    torch.manual_seed(0)
    tower = timm_tower(name).eval()
    perturb(tower)
    args = {**TIMM_STEPPED, **TIMM_WHOLE}[name]
    own = timm.create_model(name, pretrained=False, num_classes=0, **args).eval()
    weights = {key.removeprefix("backbone."): value for key, value in tower.state_dict().items()}
    _, unexpected = own.load_state_dict(weights, strict=False)
    assert not unexpected
    images = pictures(tower, 2).hidden
    spec = tower.image_spec
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    expected = own.forward_features((images / 255 - mean) / std)
    if name in ("swin_tiny_patch4_window7_224", "test_mambaout"):
        assert expected.shape[3] == tower.out_dim, "height, width, channels"
        expected = expected.reshape(2, -1, tower.out_dim)
    elif expected.ndim == 4:
        n, channels, height, width = expected.shape
        expected = expected.permute(0, 2, 3, 1).reshape(n, height * width, channels)
    found = tower(Activations(images)).hidden
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1e-4


def test_blocks_are_counted_one_by_one():
    blocks = {name: len(timm_tower(name).layer_groups()) - 1 for name in TIMM_STEPPED}
    assert blocks["test_vit"] == len(timm.create_model("test_vit").blocks)
    assert blocks["swin_tiny_patch4_window7_224"] == 1 + 1 + 2
    assert blocks["tf_efficientnet_lite0"] == 1 + 2 + 2 + 3 + 3 + 4 + 1
    assert blocks["test_resnet"] == sum(
        len(getattr(timm.create_model("test_resnet"), f"layer{i}")) for i in (1, 2, 3, 4)
    )
    assert blocks["test_convnext"] == sum(len(stage.blocks) for stage in timm.create_model("test_convnext").stages)


def test_what_follows_the_last_block_belongs_to_it():
    last = timm_tower("tf_efficientnet_lite0").layer_groups()["block.15"]
    assert "backbone.conv_head.weight" in last
    assert "backbone.bn2.weight" in last
    assert "backbone.norm.weight" in timm_tower("test_vit").layer_groups()["block.5"]
    swin = timm_tower("swin_tiny_patch4_window7_224").layer_groups()
    assert "backbone.norm.weight" in list(swin.values())[-1]
    assert any("downsample" in name for name in swin["block.1"]), "what halves the grid comes with the block after it"


def test_no_head_is_left():
    for name in ("test_vit", "test_convnext", "tf_efficientnet_lite0", "test_mambaout"):
        left = [key for key, _ in timm_tower(name).named_parameters()]
        assert not [key for key in left if key.startswith(("backbone.head", "backbone.classifier", "backbone.fc"))]


def test_pixels_are_scaled_and_normalised_with_the_towers_own_statistics():
    tower = TinyVision()
    tower.image_spec = ImageSpec(2, 2, "bilinear", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    image = torch.tensor([0, 255, 51, 204], dtype=torch.uint8).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    expected = [[(x - m) / s for x in (0.0, 1.0, 0.2, 0.8)] for m, s in ((0.5, 0.5), (0.25, 0.25), (0.0, 2.0))]
    assert torch.allclose(tower.pixels(image)[0].flatten(1), torch.tensor(expected), atol=1e-6)
    assert tower.bfloat16().pixels(image).dtype == torch.bfloat16


def test_the_image_is_not_written_to():
    tower = TinyVision()
    images = pictures(tower, 1).hidden
    before = images.clone()
    tower.float()(Activations(images))
    assert torch.equal(images, before)


def test_a_directory_gives_weights_arguments_and_statistics(small_vit):
    tower = build_vision_tower(f"timm:local-dir:{small_vit}")
    assert tower.image_spec == ImageSpec(160, 160, "lanczos", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    weights = load_file(small_vit / "model.safetensors")
    for key, value in tower.state_dict().items():
        assert torch.equal(value, weights[key.removeprefix("backbone.")])
    assert {key for key in weights if key.startswith("head.")} == {"head.weight", "head.bias"}
    assert "backbone.blocks.0.ls1.gamma" in tower.state_dict(), "init_values of the directory was used"
    again = vision_tower_from_config(json.loads(json.dumps(tower.config())))
    again.load_state_dict(tower.state_dict(), strict=True)
    assert again.image_spec == tower.image_spec
    assert str(small_vit) not in repr(tower.config())


def test_damaged_directories_are_refused(small_vit, tmp_path_factory):
    with pytest.raises(UserError, match=r"there is no .*config.json"):
        build_vision_tower(f"timm:local-dir:{tmp_path_factory.mktemp('empty')}")
    weights = small_vit / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(UserError, match="could not be loaded"):
        build_vision_tower(f"timm:local-dir:{small_vit}")


def test_a_name_without_prefix_says_what_to_write():
    with pytest.raises(UserError, match="write timm:resnet50"):
        build_vision_tower("resnet50")
    with pytest.raises(UserError, match="write timm:local-dir:/a/dir"):
        build_vision_tower("local-dir:/a/dir")
    with pytest.raises(UserError, match="write timm:local-dir:weights/vit "):
        build_vision_tower("weights/vit")


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean 'tiny'\?"):
        build_vision_tower("tiney")
    with pytest.raises(UserError, match=r"timm has no model 'resnet5000': did you mean timm:resnet50"):
        build_vision_tower("timm:resnet5000")


def test_none_is_no_tower():
    assert build_vision_tower("none") is None


def test_efficientnet_lite0_gives_49_tokens_of_1280():
    tower = build_vision_tower(f"timm:local-dir:{real_weights('tf_efficientnet_lite0')}").eval()
    assert tower.image_spec == ImageSpec(224, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert tower.out_dim == 1280
    tower.tune("top:2")
    images = pictures(tower, 2)
    with torch.no_grad():
        assert tower.prefix(images).hidden.shape == (2, 192, 7, 7)
        tokens = tower(images).hidden
        own = timm.create_model("local-dir:" + str(real_weights("tf_efficientnet_lite0")), pretrained=True).eval()
        expected = own.forward_features(images.hidden / 127.5 - 1)
    assert tokens.shape == (2, 49, 1280)
    assert torch.allclose(tokens, expected.flatten(2).transpose(1, 2), atol=1e-4)


def test_the_tiny_tower_tells_textures_apart_after_a_few_steps():
    """A striped disc and a plain one, in random colours: 60 steps of Adam on 32 pictures each."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")

    def draw(number):
        labels = torch.randint(0, 2, (number,), generator=generator)
        x, y = torch.randint(20, 44, (2, number, 1, 1), generator=generator)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 14**2
        striped = disc & ((rows + columns) % 8 < 4)
        shape = torch.where(labels[:, None, None] == 1, disc, striped)[:, None]
        inside, outside = torch.randint(0, 256, (2, number, 3, 1, 1), generator=generator)
        return torch.where(shape, inside, outside).to(torch.uint8), labels

    tower = TinyVision()
    head = torch.nn.Linear(tower.out_dim, 2)
    optimizer = torch.optim.Adam([*tower.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(60):
        images, labels = draw(32)
        loss = torch.nn.functional.cross_entropy(head(tower(Activations(images)).hidden.mean(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels = draw(400)
    with torch.no_grad():
        guessed = head(tower.eval()(Activations(images)).hidden.mean(1)).argmax(1)
    assert (guessed == labels).float().mean() > 0.9
