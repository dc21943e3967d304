"""Region features against torchvision's own detector: which boxes, in which order, from which weights."""

import json
import logging
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d

from mmsr_pt.config import DataConfig, ModelConfig, PretrainConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.towers.side import SideVisionTower, tuned
from mmsr_pt.models.towers.tower import Activations
from mmsr_pt.models.towers.vision import build_vision_tower
from tests.models.towers.small import REGION, make, pictures, relative_error


def torchvisions_own(tower, **settings):
    """torchvision's detector, which resizes and normalises pictures itself, with the weights of the tower."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    own = FasterRCNN(
        backbone,
        min_size=64,
        max_size=64,
        rpn_post_nms_top_n_test=40,
        box_head=TwoMLPHead(256 * 49, 16),
        box_predictor=FastRCNNPredictor(16, 6),
        **{"box_detections_per_img": 6, **settings},
    )
    own.load_state_dict(tower.detector.state_dict())
    return own.eval()


def features_of_boxes(own, image, boxes):
    images, _ = own.transform([image])
    features = own.backbone(images.tensors)
    return own.roi_heads.box_head(own.roi_heads.box_roi_pool(features, [boxes], images.image_sizes))


@torch.no_grad()
def test_equals_the_features_of_what_torchvision_detects():
    tower = make("vision", "region")
    own = torchvisions_own(tower)
    images = pictures(tower, 3).hidden
    found = tower(Activations(images)).hidden
    for image, regions in zip(images / 255, found):
        (detected,) = own([image])
        assert detected["scores"].tolist() == sorted(detected["scores"].tolist(), reverse=True)
        assert len(detected["boxes"].unique(dim=0)) > 1
        assert relative_error(regions, features_of_boxes(own, image, detected["boxes"])) < 1e-4


@torch.no_grad()
def test_the_threshold_leaves_out_what_is_below_it():
    """A class that is told from the background by a hair, at 0.04 and at 0.06."""
    tower = make("vision", "region")
    predictor = tower.detector.roi_heads.box_predictor
    image = pictures(tower, 1)
    (whole,) = features_of_boxes(torchvisions_own(tower), image.hidden[0] / 255, torch.tensor([[0.0, 0, 64, 64]]))[None]
    for score, is_detected in ((0.04, False), (0.06, True)):
        predictor.cls_score.weight.zero_()
        others = torch.tensor([1 - score - 4 * 1e-6, score, *[1e-6] * 4])
        predictor.cls_score.bias.copy_(others.log())
        regions = tower(image).hidden[0]
        is_whole = torch.allclose(regions, whole.expand_as(regions), rtol=1e-4, atol=1e-5)
        assert is_whole != is_detected


@torch.no_grad()
def test_fewer_detections_are_repeated_in_order(monkeypatch):
    tower = make("vision", "region")
    own = torchvisions_own(tower)
    images = pictures(tower, 2).hidden
    boxes = [own([image / 255])[0]["boxes"] for image in images]
    monkeypatch.setattr(tower.detector.roi_heads, "detections_per_img", 4)
    found = tower(Activations(images)).hidden
    for image, its, regions in zip(images / 255, boxes, found):
        expected = features_of_boxes(own, image, its)
        assert relative_error(regions[:4], expected[:4]) < 1e-4
        assert torch.equal(regions[4:], regions[:2])


@torch.no_grad()
def test_without_a_detection_the_whole_picture_is_the_region(monkeypatch):
    tower = make("vision", "region")
    monkeypatch.setattr(tower.detector.roi_heads, "score_thresh", 1.0)
    images = pictures(tower, 2).hidden
    found = tower(Activations(images)).hidden
    assert found.shape == (2, 6, 16)
    for image, regions in zip(images / 255, found):
        expected = features_of_boxes(torchvisions_own(tower), image, torch.tensor([[0.0, 0, 64, 64]]))
        assert relative_error(regions, expected.expand(6, -1)) < 1e-4


def test_the_other_pictures_of_a_batch_change_not_a_bit():
    tower = make("vision", "region")
    images = pictures(tower, 5).hidden
    together = tower(Activations(images)).hidden
    for rows in ([0], [3, 1], [4, 0, 2]):
        assert torch.equal(tower(Activations(images[rows])).hidden, together[rows])


def test_boxes_are_float32_where_weights_are_bfloat16():
    tower = make("vision", "region").bfloat16()
    seen = []
    for part in (tower.detector.rpn, tower.detector.roi_heads.box_roi_pool):
        part.register_forward_hook(lambda _, inputs, output: seen.append(output))
    tokens = tower(pictures(tower, 1)).hidden
    (proposals, _), of_proposals, of_detections = seen
    assert proposals[0].dtype == of_proposals.dtype == of_detections.dtype == torch.float32
    assert tokens.dtype == torch.bfloat16


def test_bfloat16_sees_about_the_same():
    exact, rough = make("vision", "region"), make("vision", "region").bfloat16()
    images = pictures(exact, 3)
    expected, found = exact(images).hidden.mean(dim=1), rough(images).hidden.mean(dim=1).float()
    assert relative_error(found, expected) < 0.2, "the same detections but for a few on the edge"


@pytest.mark.parametrize("policy", ["top:2", "full", "lora:8"])
def test_whatever_the_policy_it_stays_frozen_and_says_so(policy, caplog):
    caplog.set_level(logging.INFO)
    tower = tuned(make("vision", "region"), policy, 8).train()
    assert tower.trained_groups == frozenset()
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not any(module.training for module in tower.detector.modules())
    assert caplog.text.count(f"tuning {policy} leaves it frozen") == 1
    caplog.clear()
    tower.tune("frozen")
    assert not caplog.text


def test_a_mistyped_policy_is_refused_all_the_same():
    for policy in ("top:x", "lora", "lora:0", "half"):
        with pytest.raises(UserError, match=r"top:K .* full, frozen, side or lora:R"):
            tuned(make("vision", "region"), policy, 8)


def test_a_side_network_may_stand_beside_it():
    tower = tuned(make("vision", "region"), "side", 8)
    assert isinstance(tower, SideVisionTower)
    assert tower.trained_groups == {"side"}
    assert tower(pictures(tower, 2)).hidden.shape == (2, 1, 8)


def test_it_holds_what_torchvisions_detector_holds_and_no_more():
    tower = make("vision", "region")
    own = torchvisions_own(tower)
    assert {name for name, _ in own.named_parameters()} == {name for name, _ in tower.detector.named_parameters()}
    assert {name for name, _ in own.named_buffers()} == {name for name, _ in tower.detector.named_buffers()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """torchvision's own model, random, in a file as torchvision publishes it, with counts of BatchNorm."""
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7)
    file = tmp_path_factory.mktemp("region") / "detector.pth"
    torch.save(model.state_dict(), file)
    return file, model


def test_a_file_gives_its_weights_and_number_of_classes(published, tmp_path):
    file, model = published
    tower = build_vision_tower(f"region:{file}")
    expected = model.state_dict()
    assert any(name.endswith("num_batches_tracked") for name in expected)
    for name, value in tower.detector.state_dict().items():
        assert torch.equal(value, expected[name])
    assert tower.config() == {
        "kind": "region",
        "backbone": "resnet50",
        "image_size": 320,
        "num_regions": 49,
        "num_proposals": 300,
        "width": 1024,
        "num_classes": 7,
    }
    assert json.loads(json.dumps(tower.config())) == tower.config()
    assert {module.eps for module in tower.modules() if isinstance(module, FrozenBatchNorm2d)} == {0.0}
    tokens = tower(pictures(tower, 1)).hidden
    assert tokens.shape == (1, 49, 1024)
    save_file(model.state_dict(), tmp_path / "detector.safetensors")
    again = build_vision_tower(f"region:{tmp_path / 'detector.safetensors'}")
    assert torch.equal(again(pictures(tower, 1)).hidden, tokens)


@torch.no_grad()
def test_by_name_it_is_torchvisions_own_model_of_the_paper(monkeypatch):
    torch.manual_seed(0)
    random = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    random.roi_heads.box_predictor.cls_score.weight.mul_(100)  # so that some of 91 classes are sure
    asked = []

    def download(url, **_):
        asked.append(url)
        return random.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    tower = build_vision_tower("region").eval()
    sizes = {"min_size": 320, "max_size": 320, "box_detections_per_img": 49, "rpn_post_nms_top_n_test": 300}
    own = fasterrcnn_resnet50_fpn(weights=FasterRCNN_ResNet50_FPN_Weights.COCO_V1, **sizes).eval()
    assert asked == 2 * ["https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"]
    norms = [{m.eps for m in model.modules() if isinstance(m, FrozenBatchNorm2d)} for model in (tower, own)]
    assert norms == [{0.0}, {0.0}]
    image = pictures(tower, 1).hidden
    (detected,) = own([image[0] / 255])
    assert len(detected["boxes"]) == 49
    expected = features_of_boxes(own, image[0] / 255, detected["boxes"])
    assert relative_error(tower(Activations(image)).hidden[0], expected) < 1e-4


def test_a_download_that_fails_says_that_a_file_will_do(monkeypatch):
    def download(url, **_):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(UserError, match=r"could not be downloaded \(.*no route to host.*region:/a/file.pth"):
        build_vision_tower("region")


def test_files_that_are_no_such_detector_are_refused(published, tmp_path):
    _, model = published
    with pytest.raises(UserError, match="--vision region:/no/where.pth: there is no such file"):
        build_vision_tower("region:/no/where.pth")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(UserError, match=r"text.pth could not be read"):
        build_vision_tower(f"region:{tmp_path / 'text.pth'}")
    torch.save({"model": {}, "epoch": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=r"checkpoint.pth could not be read \(it holds more than weights by name\)"):
        build_vision_tower(f"region:{tmp_path / 'checkpoint.pth'}")
    weights = model.state_dict()
    lacking = {name: value for name, value in weights.items() if name != "rpn.head.cls_logits.bias"}
    other = {**weights, "roi_heads.mask_head.weight": torch.zeros(2)}
    wide = {**weights, "rpn.head.cls_logits.bias": torch.zeros(15)}
    for given, words in (
        (
            lacking,
            r"1 weights lacking, such as rpn.head.cls_logits.bias\): give a state dict of torchvision's fasterrcnn",
        ),
        (other, r"1 weights unexpected, such as roi_heads.mask_head.weight"),
        (wide, r"1 weights of other sizes, such as rpn.head.cls_logits.bias"),
    ):
        torch.save(given, tmp_path / "other.pth")
        with pytest.raises(UserError, match=words):
            build_vision_tower(f"region:{tmp_path / 'other.pth'}")


def test_training_needs_the_cache():
    model = ModelConfig(vision="region:/a/file.pth")
    with pytest.raises(UserError, match="--vision region:/a/file.pth needs --cache"):
        PretrainConfig(model=model)
    PretrainConfig(model=model, data=DataConfig(cache=True))
    PretrainConfig(model=ModelConfig(item="id", vision="region"))
    for cache in (False, True):
        with pytest.raises(UserError, match="leave --naive out"):
            PretrainConfig(model=model, data=DataConfig(cache=cache, naive=True))


def test_it_has_no_patches_to_hide():
    with pytest.raises(UserError, match="RegionVision has no patches to hide"):
        make("vision", "region").hide_patches(0.75, False)


def test_small_towers_of_the_tests_are_of_the_class_that_is_tested():
    assert make("vision", "region").config() == REGION
