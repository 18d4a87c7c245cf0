"""The models of `coverage.py`: which, how they are built, what goes in, what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_map

FAMILIES = ("torchvision", "segmentation", "detection", "timm")

SEGMENTATION = (
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)

# Every proposal and every box counts, however low its score: with random weights no score is
# high, and a detector that returns no boxes would prove nothing about its heads. Few of them,
# as more cost only time.
_RCNN = {
    "rpn_score_thresh": 0.0,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 20,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 10,
}
_ONE_STAGE = {"score_thresh": 0.0, "topk_candidates": 100, "detections_per_img": 10}
_SMALL_IMAGES = {"min_size": 320, "max_size": 320}
DETECTION: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": {**_RCNN, **_SMALL_IMAGES},
    "fasterrcnn_resnet50_fpn_v2": {**_RCNN, **_SMALL_IMAGES},
    "fasterrcnn_mobilenet_v3_large_fpn": {**_RCNN, **_SMALL_IMAGES},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {**_RCNN, **_SMALL_IMAGES},
    "maskrcnn_resnet50_fpn": {**_RCNN, **_SMALL_IMAGES},
    "maskrcnn_resnet50_fpn_v2": {**_RCNN, **_SMALL_IMAGES},
    "keypointrcnn_resnet50_fpn": {**_RCNN, **_SMALL_IMAGES},
    "retinanet_resnet50_fpn": {**_ONE_STAGE, **_SMALL_IMAGES},
    "retinanet_resnet50_fpn_v2": {**_ONE_STAGE, **_SMALL_IMAGES},
    "fcos_resnet50_fpn": {**_ONE_STAGE, **_SMALL_IMAGES},
    "ssd300_vgg16": _ONE_STAGE,
    "ssdlite320_mobilenet_v3_large": _ONE_STAGE,
}

TIMM = (
    *("resnet18d", "ecaresnet26t", "seresnet50", "resnext50_32x4d", "resnetblur50"),
    *("res2net50_14w_8s", "resnest14d", "skresnet18", "legacy_seresnext26_32x4d"),
    *("resnetv2_50", "resnetv2_50x1_bit", "densenet121", "dla34", "dla60_res2net", "dpn68b"),
    *("hrnet_w18_small", "ese_vovnet19b_dw", "vovnet39a", "cspresnet50", "darknet53"),
    *("cs3darknet_s", "rdnet_tiny", "selecsls42", "tresnet_m"),
    *("efficientnet_b0", "efficientnetv2_rw_t", "tf_efficientnetv2_b0", "mobilenetv3_small_050"),
    *("mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "mobileone_s0", "repvgg_a0"),
    *("ghostnet_100", "ghostnetv2_100", "ghostnetv3_050", "repghostnet_050", "fbnetc_100"),
    *("fbnetv3_b", "mnasnet_small", "mixnet_s", "lcnet_050", "tinynet_e", "rexnet_100"),
    *("hardcorenas_a", "regnetx_002", "regnety_002", "regnetz_005", "gernet_s"),
    *("nf_resnet50", "eca_nfnet_l0", "dm_nfnet_f0", "legacy_xception", "xception41"),
    *("inception_v3", "inception_v4", "inception_resnet_v2", "convnext_atto", "convnextv2_atto"),
    *("convmixer_768_32", "inception_next_atto", "starnet_s1", "fasternet_t0", "mambaout_femto"),
    *("hgnet_tiny", "hgnetv2_b0", "repvit_m0_9", "fastvit_t8", "fastvit_sa12"),
    *("efficientformer_l1", "efficientformerv2_s0", "efficientvit_b0", "efficientvit_m0"),
    *("mobilevit_xxs", "mobilevitv2_050", "edgenext_xx_small", "swiftformer_xs"),
    *("poolformer_s12", "convformer_s18", "caformer_s18", "focalnet_tiny_srf", "levit_128s"),
    *("tiny_vit_5m_224", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"),
    *("deit3_small_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224"),
    *("convit_tiny", "cait_xxs24_224", "crossvit_9_240", "coat_lite_tiny", "coatnet_nano_rw_224"),
    *("maxvit_tiny_tf_224", "mvitv2_tiny", "davit_tiny", "gcvit_xxtiny"),
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "nest_tiny", "twins_svt_small"),
    *("pvt_v2_b0", "pit_ti_224", "visformer_tiny", "volo_d1_224", "xcit_nano_12_p16_224"),
    *("tnt_s_patch16_224", "mixer_s32_224", "gmlp_ti16_224", "resmlp_12_224", "halonet26t"),
    *("botnet26t_256", "hiera_tiny_224", "nextvit_small"),
)

# The smallest images that these are built for; the others take SMALL, which is enough for
# five halvings and two samples in train mode.
_SIZES = {"inception_v3": 299, "googlenet": 224}
_SIZES_FIXED_BY = ("vit_", "swin", "maxvit")
SMALL = 128


def all_models() -> list[str]:
    """Keys 'family:name' of all models, in the order of the document."""
    names = {
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "segmentation": SEGMENTATION,
        "detection": tuple(DETECTION),
        "timm": TIMM,
    }
    return [f"{family}:{name}" for family in FAMILIES for name in names[family]]


@dataclass
class Subject:
    """A model with what it is called with.

    example: what it is traced with: one sample.
    batch: two different samples, for the comparison of outputs and for a step of training.
    targets: per sample, where the model computes its own losses, else None.
    image_size: length of the images' sides.
    """

    model: nn.Module
    example: Any
    batch: Any
    targets: Any
    image_size: int

    def loss(self, model: nn.Module) -> Tensor:
        """A scalar with a gradient for everything that the model returns in train mode."""
        out = self.run_in_train_mode(model)
        leaves = [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor)]
        losses = [x.float().square().mean() for x in leaves if x.is_floating_point()]
        return torch.stack(losses).sum()

    def run_in_train_mode(self, model: nn.Module) -> Any:
        """What the model returns; it is left in train mode."""
        model.train()
        return model(*self.batch, self.targets) if self.targets else model(*self.batch)

    def on_images(self, model: nn.Module) -> nn.Module:
        """The model as a function of one tensor of images, as an export wants it."""
        return model if self.targets is None else _OnTensor(model)


class _OnTensor(nn.Module):
    """A detector that takes its images as one tensor (n, 3, height, width) of one size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.detector = model

    def forward(self, images: Tensor) -> Any:
        return self.detector(list(images))


def build(key: str) -> Subject:
    """Build a model with random weights, in eval mode, and random inputs; always the same."""
    family, name = key.split(":")
    torch.manual_seed(0)
    if family == "detection":
        return _detector(name)
    if family == "segmentation":
        # lraspp has no auxiliary head.
        auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
        make = getattr(torchvision.models.segmentation, name)
        model = make(weights=None, weights_backbone=None, **auxiliary)
        return _on_images(model, [SMALL])
    if family == "timm":
        model = timm.create_model(name, pretrained=False)
        told: Any = model.default_cfg
        default, fixed = told["input_size"][-1], told.get("fixed_input_size", False)
        return _on_images(model, [default] if fixed else [SMALL, default])
    # Only these two take that argument: their own initialisation takes a minute.
    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **slow)
    if name.startswith(_SIZES_FIXED_BY):
        return _on_images(model, [256 if name.startswith("swin_v2") else 224])
    return _on_images(model, [_SIZES.get(name, SMALL)])


def _on_images(model: nn.Module, sizes: list[int]) -> Subject:
    """Take the first size at which the model runs."""
    no_constants(model).eval()
    for size in sizes:
        batch = torch.randn(2, 3, size, size)
        try:
            with torch.no_grad():
                model(batch[:1])
        except Exception:  # whatever its code raises for images that are too small
            if size == sizes[-1]:
                raise
        else:
            break
    return random_statistics(Subject(model, batch[:1], (batch,), None, size))


def _detector(name: str) -> Subject:
    make = getattr(torchvision.models.detection, name)
    model = no_constants(make(weights=None, weights_backbone=None, **DETECTION[name])).eval()
    images = [torch.rand(3, 320, 320) for _ in range(2)]
    targets = [_target(name, seed) for seed in range(2)]
    return random_statistics(Subject(model, ([images[0]],), (images,), targets, 320))


def _target(name: str, seed: int) -> dict[str, Tensor]:
    """Two objects in an image of 320×320."""
    shift = 8.0 * seed
    boxes = torch.tensor([[20.0, 30.0, 180.0, 200.0], [100.0, 90.0, 260.0, 300.0]]) + shift
    target = {"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64)}
    if name.startswith("mask"):
        target["masks"] = torch.ones(2, 320, 320, dtype=torch.uint8)
    if name.startswith("keypoint"):
        points = torch.linspace(0.1, 0.9, 17)[None, :, None]
        corners = boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])
        target["keypoints"] = torch.cat([corners, torch.ones(2, 17, 1)], dim=2)
    return target


def no_constants(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give random values to all parameters that a fresh model holds constant; returns the model.

    A shift of 0 or a scale of 1 hides which channel it belongs to, and a residual branch that
    starts with a scale of 0 or 1e-6 hides all that is wrong inside it. Zeros become numbers from
    -0.3 to 0.3, other constants from 0.5 to 1.5.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            first = float(parameter.flatten()[0]) if parameter.numel() else 0.0
            if bool((parameter == first).all()):
                low, high = (-0.3, 0.3) if first == 0 else (0.5, 1.5)
                parameter.copy_(_uniform(parameter, low, high, random))
    return model


def random_statistics(subject: Subject, seed: int = 0) -> Subject:
    """Set batch norms' statistics to those of the inputs, give or take; returns the subject.

    With statistics that have nothing to do with the activations, signals fade from layer to
    layer until the network answers the same to everything, whatever was cut.
    """
    random = torch.Generator().manual_seed(seed)
    norms = [m for m in subject.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        subject.run_in_train_mode(subject.model)
        subject.model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            # A channel that was constant here must not be blown up a thousandfold elsewhere.
            variance.clamp_(min=max(float(variance.max()) / 100, 1e-3))
            mean += _uniform(mean, -0.3, 0.3, random) * variance.sqrt()
            variance *= _uniform(variance, 0.5, 1.5, random)
    return subject


def _uniform(like: Tensor, low: float, high: float, random: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=random) * (high - low) + low


def in_float64(value: Any) -> Any:
    """Inputs as float64, nested as they are."""
    change: Callable[[Any], Any] = lambda x: (  # noqa: E731
        x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
    )
    return tree_map(change, value)
