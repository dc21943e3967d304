"""Region features: `region` and `region:FILE`, a picture as the objects that a detector finds in it.

What VLPs such as LXMERT, VisualBERT and UNITER read, after Anderson et al. (2018, arXiv 1707.07998). As in the MMSR
paper: Faster R-CNN (Ren et al. 2015), detections with a score above 0.05, 49 regions, the 1024 features of its box
head. The detector is torchvision's ResNet-50 FPN for COCO, and the boxes are those that it would give itself: the ones
with the highest scores after suppression within each class.

The detector never trains: which boxes it keeps has no gradient. Training reads its features from the cache.

Shapes: N images, R regions, P boxes, d width of the box head.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from mmsr_pt.batch import ImageSpec
from mmsr_pt.log import UserError, reason
from mmsr_pt.models.towers.tower import SIDE, Step, check_policy
from mmsr_pt.models.towers.vision_tower import VisionTower

log = logging.getLogger(__name__)

_SCORE_THRESHOLD = 0.05
_POOLED = 7
"""Height and width to which each box is pooled."""
_CLASSES = "roi_heads.box_predictor.cls_score.bias"
"""The weight with one number for each class."""


class RegionVision(VisionTower):
    """A frozen detector: a picture's regions, the surest first.

    A picture with fewer detections than regions has them repeated in order, so that no mask is needed and each counts
    about alike; in one without any, the whole picture is the one region.
    """

    can_train = False

    def __init__(
        self,
        backbone: str = "resnet50",
        image_size: int = 320,
        num_regions: int = 49,
        num_proposals: int = 300,
        width: int = 1024,
        num_classes: int = 91,
    ) -> None:
        """A detector with random weights.

        Args:
            backbone: a ResNet of torchvision.
            image_size: height and width, a multiple of 32; 320 is that of torchvision's small detector.
            num_regions: R.
            num_proposals: boxes of the first stage that the second looks at; 300 as in the paper of Faster R-CNN, where
                torchvision's 1000 take half as long again.
            width: d.
            num_classes: with the background.
        """
        super().__init__()
        assert image_size % 32 == 0, "the pyramid's maps fit together without padding"
        self.sizes = {
            "backbone": backbone,
            "image_size": image_size,
            "num_regions": num_regions,
            "num_proposals": num_proposals,
            "width": width,
            "num_classes": num_classes,
        }
        # as torchvision sets it for its weights, which come from another program
        norm = functools.partial(FrozenBatchNorm2d, eps=0.0)
        pyramid = resnet_fpn_backbone(backbone_name=backbone, weights=None, norm_layer=norm, trainable_layers=5)
        self.detector = FasterRCNN(
            pyramid,
            rpn_post_nms_top_n_test=num_proposals,
            box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=_POOLED, sampling_ratio=2),
            box_head=TwoMLPHead(pyramid.out_channels * _POOLED**2, width),
            box_predictor=FastRCNNPredictor(width, num_classes),
            box_score_thresh=_SCORE_THRESHOLD,
            box_detections_per_img=num_regions,
        )
        # pictures come in the right size, and `pixels` normalises them
        self.detector.transform = nn.Identity()
        heads = (self.detector.rpn.head, self.detector.roi_heads.box_head, self.detector.roi_heads.box_predictor)
        for part in (self.detector.backbone, *heads):
            part.register_forward_pre_hook(_in_dtype_of_weights)
            part.register_forward_hook(_out_in_float32)
        self.image_spec = ImageSpec(image_size, image_size, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.num_regions = num_regions
        self.out_dim = width
        self.tune("frozen")

    def steps(self) -> list[Step]:
        """See Tower."""
        return [Step("stem", ("detector",), self._see)]

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return {"kind": "region", **self.sizes}

    def tune(self, policy: str) -> None:
        """See Tower; of the detector itself nothing trains, whatever the policy.

        Raises:
            UserError: an unknown policy.
        """
        check_policy(policy)
        if policy not in ("frozen", SIDE):
            log.info("the detector of --vision region never trains: tuning %s leaves it frozen", policy)
        super().tune("frozen")

    def _see(self, images: Tensor, _: object) -> Tensor:
        """[N, 3, H, W] uint8 -> [N, R, d]."""
        # one by one: in another batch sums round otherwise, and a box that is just in would be just out
        regions = [self._regions(picture) for picture in self.pixels(images).split(1)]
        return torch.stack(regions).to(self.dtype)

    def _regions(self, picture: Tensor) -> Tensor:
        """[1, 3, H, W] -> [R, d] float32."""
        detector, size = self.detector, [(picture.shape[2], picture.shape[3])]
        features = detector.backbone(picture)
        proposals, _ = detector.rpn(ImageList(picture, size), features)
        (found,), _ = detector.roi_heads(features, proposals, size)
        boxes = found["boxes"]
        if len(boxes) == 0:
            boxes = boxes.new_tensor([[0, 0, picture.shape[3], picture.shape[2]]])
        regions = detector.roi_heads.box_head(detector.roi_heads.box_roi_pool(features, [boxes], size))
        return regions[torch.arange(self.num_regions, device=regions.device) % len(regions)]


def _in_dtype_of_weights(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return _cast(inputs, next(module.parameters()).dtype)


def _out_in_float32(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
    """Boxes, their overlaps and scores need more digits than bfloat16 has, whatever the weights are in."""
    return _cast(output, torch.float32)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """All tensors in nested lists, tuples and dictionaries in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, dict):
        return {name: _cast(part, dtype) for name, part in value.items()}
    return type(value)(_cast(part, dtype) for part in value)


def from_config(config: dict[str, Any]) -> RegionVision:
    """The tower of these sizes, with random weights."""
    return RegionVision(**{name: value for name, value in config.items() if name != "kind"})


def load_pretrained(file: str | None) -> RegionVision:
    """The tower with torchvision's weights for COCO, or with those of a file that has the same names.

    Args:
        file: .pth or .safetensors; the number of classes is the file's own. None: torchvision downloads and keeps its.

    Raises:
        UserError: weights that cannot be had or are of another model.
    """
    if file is None:
        try:
            weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.get_state_dict(progress=False, check_hash=True)
        except Exception as error:  # downloads fail in many ways
            raise UserError(
                f"--vision region: torchvision's weights could not be downloaded ({reason(error)}): give a file of "
                "them, region:/a/file.pth"
            ) from error
    else:
        weights = _read(file)
    # running counts of BatchNorm, which a frozen one has no use for
    weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    tower = RegionVision(num_classes=len(weights[_CLASSES])) if _CLASSES in weights else RegionVision()
    own = tower.detector.state_dict()
    for what, names in (
        ("lacking", own.keys() - weights.keys()),
        ("unexpected", weights.keys() - own.keys()),
        ("of other sizes", {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}),
    ):
        if names:
            raise UserError(
                f"--vision region:{file} holds another model ({len(names)} weights {what}, such as {min(names)}): give "
                "a state dict of torchvision's fasterrcnn_resnet50_fpn"
            )
    tower.detector.load_state_dict(weights)
    return tower


def _read(file: str) -> dict[str, Tensor]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"--vision region:{file}: there is no such file; give one of weights, .pth or .safetensors")
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise ValueError("it holds more than weights by name")
    except Exception as error:  # files are damaged in many ways
        raise UserError(
            f"--vision region:{file} could not be read ({reason(error)}): give a state dict of torchvision's "
            "fasterrcnn_resnet50_fpn, as .pth or .safetensors"
        ) from error
    return weights
