"""The programs whose weights can be read: their networks, names of tensors, and inputs.

Inputs, clips and sizes are taken from the authors' code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.inputs import Input

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_KINETICS = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
_HARA = {"mean": (0.4345, 0.4051, 0.3775), "std": (0.2768, 0.2713, 0.2737)}
_AS_THEY_ARE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
HEADS = re.compile(r"(fc|linear|classifier|head|cls_head|motion_linear|app_linear|projector|mlp)\w*\.")
_VCOP = (
    ("r3d10", "vcop r3d"),
    ("r3d18", "vcop r3d"),
    ("r2plus1d10", "vcop r2plus1d"),
    ("r2plus1d18", "vcop r2plus1d"),
    ("c3d", "vcop c3d"),
)
_TORCHVISION = (("r3d18", "torchvision r3d"), ("r2plus1d18_tv", "torchvision r2plus1d"))
_FRAMES = (("resnet18", "resnet"), ("resnet50", "resnet"))
_NUMBERED = (("r2plus1d18_tv", "numbered r2plus1d"),)
_CTP = (("r3d18", "ctp r3d"), ("r2plus1d18_tv", "ctp r2plus1d"))


@dataclass(frozen=True)
class Family:
    """Weights of one program that expect the same input.

    name: as given to `--from`; families of one program may share it if only the inputs of their networks differ
    networks: (backbone, layout of names) of each network
    files: (key of the dictionary in the file, "" for the file itself; prefix of each name, without `module.`) of
    published files
    size: height and width of the frames, and of the crop; fps: rate of the videos, None: the files' rates
    heads: names of tensors that are not part of the backbone
    note: printed after an import; refused: by backbone, why features would differ although names and shapes match
    """

    name: str
    about: str
    networks: tuple[tuple[str, str], ...]
    input: Input
    files: tuple[tuple[str, str], ...]
    size: tuple[int, int, int] = (128, 171, 112)
    fps: float | None = None
    epsilon: float = 1e-5
    heads: re.Pattern = HEADS
    note: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)


Networks = tuple[tuple[str, str], ...]


def _family(name: str, about: str, networks: Networks, input: Input, *files: tuple[str, str], **other: Any) -> Family:
    return Family(name, about, networks, input, files, **other)


def _clips(normalisation: dict[str, Any], frames: int = 16, **other: Any) -> Input:
    return Input(**normalisation, frames=frames, **other)


_RAW, _BGR = _clips(_AS_THEY_ARE), _clips(_AS_THEY_ARE, order="BGR", top=255.0)
_CTP_NOTE = "the authors of CtP pretrain without spatial stride in conv5, and finetune with it, as here"
_DILATED = "the R3D of TCLR has a dilated convolution instead of the temporal stride in conv5, which names do not show"

FAMILIES = (
    _family(
        "torchvision",
        "torchvision's r3d_18 and r2plus1d_18 (Kinetics-400)",
        _TORCHVISION,
        _clips(_KINETICS),
        ("", ""),
        fps=15.0,
    ),
    _family(
        "torchvision",
        "torchvision's s3d (Kinetics-400)",
        (("s3d", "torchvision s3d"),),
        _clips(_KINETICS, 128),
        ("", ""),
        size=(256, 256, 224),
        fps=15.0,
        epsilon=1e-3,
    ),
    _family(
        "torchvision",
        "torchvision's resnet18 and resnet50 (ImageNet), on every frame",
        _FRAMES,
        _clips(_IMAGENET),
        ("", ""),
        size=(256, 340, 224),
    ),
    _family("vcop", "VCOP, Xu et al., CVPR 2019", _VCOP, _RAW, ("", "base_network."), ("", "")),
    _family("prp", "PRP, Yao et al., CVPR 2020", _VCOP, _RAW, ("", "base_network."), ("", "")),
    _family("pcl", "PCL, Tao et al., 2020", (*_VCOP, *_NUMBERED), _RAW, ("", "base_network."), ("", "")),
    _family("pace", "video-pace, Wang et al., ECCV 2020", _VCOP, _BGR, ("", "")),
    _family("sts", "STS, Wang et al., TPAMI 2021", _VCOP, _BGR, ("", "")),
    _family(
        "rspnet",
        "RSPNet, Chen et al., AAAI 2021",
        (("resnet3d18", "resnet"), *_VCOP, *_NUMBERED),
        _clips(_IMAGENET),
        ("model", "encoder_q.encoder."),
        ("", ""),
    ),
    _family(
        "kenshohara",
        "3D-ResNets of Hara et al., CVPR 2018 (Kinetics)",
        (("resnet3d18", "resnet"),),
        _clips(_HARA),
        ("state_dict", ""),
        ("", ""),
    ),
    _family(
        "tce",
        "TCE, Knights et al., ICPR 2020",
        _FRAMES,
        _clips(_IMAGENET),
        ("state_dict", ""),
        size=(256, 340, 224),
    ),
    _family(
        "ctp",
        "CtP, Wang et al., CVPR 2021",
        _CTP,
        _clips(_IMAGENET),
        ("state_dict", "backbone."),
        epsilon=1e-3,
        note=_CTP_NOTE,
    ),
    _family(
        "tubelet",
        "tubelet-contrast, Thoker et al., ICCV 2023",
        _CTP,
        _clips(_IMAGENET),
        ("state_dict", "backbone."),
        epsilon=1e-3,
    ),
    _family(
        "videomoco",
        "VideoMoCo, Pan et al., CVPR 2021",
        _TORCHVISION,
        _clips(_IMAGENET),
        ("state_dict", "encoder_q."),
    ),
    _family(
        "coclr",
        "CoCLR, Han et al., NeurIPS 2020, the networks of RGB",
        (("s3d", "coclr s3d"),),
        _clips(_IMAGENET, 32),
        ("state_dict", "encoder_q.0."),
        size=(146, 195, 128),
        heads=re.compile(r"block[1-5]\.|" + HEADS.pattern),
    ),
    _family(
        "severe",
        "the R(2+1)D-18 networks of SEVERE, Thoker et al., ECCV 2022: GDT, SeLaVi, RSPNet, PCL, TCLR, CtP and others",
        (_TORCHVISION[1], *_NUMBERED, _CTP[1]),
        _clips(_IMAGENET),
        ("model", "video_network.base."),
    ),
    _family(
        "tclr",
        "TCLR, Dave et al., CVIU 2022",
        _TORCHVISION,
        _clips(_AS_THEY_ARE, order="BGR"),
        ("state_dict", "0."),
        refused={"r3d18": _DILATED},
    ),
)
