"""An untrusted file of weights: read without running any code in it, and recognised by the names of its tensors.

Only tensors are read from the file; declared sizes are compared with its content before memory is allocated.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from labelgen.reading import open_regular
from trainer.errors import SettingError, TrainerError
from trainer.tensors import is_pytorch, read_tensors
from trainer.weights.families import FAMILIES, Family
from trainer.weights.layouts import expected, to_ours

_DEPTH, _ENTRIES = 3, 1 << 16  # levels of nested dictionaries, and number of names
# what checkpoints hold besides tensors: plain values, which are ignored here
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *((np.float64(0).__reduce__()[0], f"numpy.{place}.multiarray.scalar") for place in ("core", "_core")),
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")),
]
_REFUSED = {  # names by which unsupported networks are recognised
    r"mixed_3b\.gating_b0\.": "the S3D of video-pace, whose poolings pad like TensorFlow, so that its features would differ here",
    r"sepInc_\w+\.": "the S3D-G of RSPNet, which gates by a convolution and leaves two branches ungated",
    r"conv1_s\.weight": "the R(2+1)D of 3D-ResNets, whose stem differs from those of all backbones here",
    r"conv1a\.conv\.weight|conv1\.conv\.(weight|conv_s)": "a network of MMAction2",
    r"s1\.pathway\d_stem\.": "a network of PySlowFast",
    r"blocks\.0\.(multipathway_blocks\.\d\.)?conv\.weight": "a network of PyTorchVideo",
    r"Conv3d_1a_7x7\.": "I3D",
    r"patch_embed\.|cls_token": "a transformer",
    r"mc3_|encoder\.layers\.encoder_layer": "a transformer of torchvision",
}


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file: tensors by name, the key of the dictionary that holds them ("" for the file itself), and
    the SHA-256 of the file."""

    tensors: Mapping[str, Tensor]
    wrapper: str
    sha256: str


@dataclass(frozen=True)
class Match:
    """One of our backbones in a file: the program that it may be from, its layout, the prefix of its names, and the
    names that are not part of it."""

    family: Family
    backbone: str
    layout: str
    prefix: str
    dropped: tuple[str, ...]

    @property
    def published(self) -> bool:
        """Whether the names are those of the files that the program's authors published."""
        return any(prefix == self.prefix.replace("module.", "") for _, prefix in self.family.files)

    def weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors by our names, float32. Raises TrainerError for values that are not finite."""
        found = {}
        for theirs, (ours, _) in expected(self.layout, self.backbone).items():
            value = tensors.get(self.prefix + theirs)
            if value is None:  # many files are older than the counts of batches
                value = torch.zeros((), dtype=torch.int64)
            value = to_ours(self.backbone, value).detach()
            value = value.to(torch.float32) if value.is_floating_point() else value.to(torch.int64)
            if not torch.isfinite(value).all():
                raise TrainerError(f"{self.prefix}{theirs} holds values that are not finite")
            found[ours] = value.clone(memory_format=torch.contiguous_format)
        return found


def read(path: Path) -> WeightsFile:
    """The tensors of a file of PyTorch or safetensors. Raises TrainerError for a file that is damaged, or neither."""
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # a BinaryIO suffices
            size = file.tell()
            file.seek(0)
            if is_pytorch(file.read(9)):
                content = _unpickled(file, size)
            else:
                meta, content = read_tensors(path)
                if meta is not None:
                    raise TrainerError("weights of vssl, which all commands accept directly")
    except (OSError, TrainerError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise TrainerError(f"{path}: {getattr(error, 'strerror', None) or reason}") from error
    wrapper, tensors = max(_dictionaries(content), key=lambda found: len(found[1]), default=("", {}))
    if not tensors:
        raise TrainerError(
            f"{path}: holds no named tensors; expected the state_dict of a network, as written by `torch.save`"
        )
    return WeightsFile(tensors, wrapper, digest)


def _unpickled(file: BinaryIO, size: int) -> object:
    """The content of a file of plain values and tensors, by torch.load. Raises TrainerError for anything else."""
    try:
        if zipfile.is_zipfile(file):
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                stored = sum(entry.file_size for entry in archive.infolist())
            if stored > size:
                raise TrainerError(
                    f"declares {stored:,} bytes, but has {size:,}: it is compressed, or pretends to be larger"
                )
        file.seek(0)
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (TrainerError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise TrainerError(
                f"holds {code[1]:.80}, which is neither a tensor nor a plain value; no code in it was run. Save only the weights "
                "in the program that made them: torch.save(network.state_dict(), FILE)"
            ) from error
        raise TrainerError("not a readable file of weights (its pickle is damaged)") from error
    except Exception as error:  # the libraries raise errors of all types for damaged files
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainerError(f"not a readable file of weights ({line:.200})") from error


def _dictionaries(content: object, key: str = "", depth: int = 0) -> Iterable[tuple[str, dict[str, Tensor]]]:
    """Every dictionary within `content` by its key, reduced to tensors."""
    if not isinstance(content, Mapping) or depth > _DEPTH or len(content) > _ENTRIES:
        return
    yield key, {name: value for name, value in content.items() if isinstance(name, str) and _usable(value)}
    for name, value in content.items():
        if isinstance(name, str):
            yield from _dictionaries(value, name, depth + 1)


def _usable(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
    )


def recognise(found: WeightsFile, name: str | None = None) -> Match:
    """The network in a file. name: the program that made the weights, if the file fits several with different inputs.

    Raises TrainerError, which says what the file is or lacks; SettingError for an unknown program, and if a choice is needed.
    """
    if name is not None and name not in names():
        raise SettingError(f"unknown program {name!r}, expected one of: {', '.join(names())}")
    matches, near = [], dict[str, int]()
    for family in FAMILIES:
        for backbone, layout in family.networks:
            for prefix in _prefixes(found.tensors, layout, backbone):
                reason, dropped = _compared(found.tensors, family, backbone, layout, prefix)
                if reason:
                    wanted = expected(layout, backbone)
                    near[f"{backbone}, but {reason}"] = sum(prefix + theirs in found.tensors for theirs in wanted)
                else:
                    matches.append(Match(family, backbone, layout, prefix, dropped))
    if not matches:
        raise TrainerError(_unknown(found.tensors, near))
    if name is not None:
        matches, all_matches = [match for match in matches if match.family.name == name], matches
        if not matches:
            fits = ", ".join(dict.fromkeys(match.family.name for match in all_matches))
            raise TrainerError(f"names and shapes of its tensors are not those of {name}, but of: {fits}")
    else:
        as_published = [match for match in matches if (found.wrapper, _bare(match.prefix)) in match.family.files]
        matches = as_published or matches
    query = [
        match for match in matches if "encoder_q." in match.prefix
    ]  # prefer the query encoder to the momentum encoder
    matches = query or matches
    if len(prefixes := {match.prefix for match in matches}) > 1:
        raise TrainerError(f"holds several networks: {', '.join(sorted(map(shown, prefixes)))}; save only one of them")
    inputs = {(m.family.input, m.family.size, m.family.fps, m.family.epsilon, bool(m.family.refused)) for m in matches}
    if len(inputs) > 1:
        choices = "; ".join(f"{match.family.name} ({match.family.input.described})" for match in matches)
        raise SettingError(f"several programs with different inputs have these names; choose one of them: {choices}")
    best = matches[0]
    if best.backbone in best.family.refused:
        raise TrainerError(f"{best.family.about}: {best.family.refused[best.backbone]}; its features here would differ")
    return best


def names() -> list[str]:
    """The names of the programs."""
    return list(dict.fromkeys(family.name for family in FAMILIES))


def _bare(prefix: str) -> str:
    return prefix.replace("module.", "")


def _prefixes(tensors: Mapping[str, Tensor], layout: str, backbone: str) -> list[str]:
    """Possible prefixes of the names of a network: those of the name of its first tensor."""
    first = next(iter(expected(layout, backbone)))
    return [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]


def _compared(
    tensors: Mapping[str, Tensor], family: Family, backbone: str, layout: str, prefix: str
) -> tuple[str, tuple[str, ...]]:
    """Why the tensors with a prefix are not the network, "" if they are, and the names that are not part of it."""
    wanted = expected(layout, backbone)
    missing = [name for name in wanted if prefix + name not in tensors and not name.endswith("num_batches_tracked")]
    if missing:
        return f"{_listed([prefix + name for name in missing])} missing", ()
    for name, (_, shape) in wanted.items():
        value = tensors.get(prefix + name)
        if value is not None and tuple(value.shape) != shape:
            sizes = ["x".join(map(str, size)) for size in (value.shape, shape)]
            return f"{shown(prefix + name)} is {sizes[0]}, expected {sizes[1]}", ()
    rest = [name for name in tensors if name.removeprefix(prefix) not in wanted or not name.startswith(prefix)]
    own = [name for name in rest if name.startswith(prefix) and not family.heads.match(name.removeprefix(prefix))]
    if own:
        return f"{_listed(own)} neither part of it nor a known head", ()
    return "", tuple(rest)


def _listed(names: list[str]) -> str:
    """The first of some names, the number of others, and the verb."""
    return f"{shown(names[0])} is" if len(names) == 1 else f"{shown(names[0])} and {len(names) - 1} others are"


def _unknown(tensors: Mapping[str, Tensor], near: dict[str, int]) -> str:
    """A description of a file that fits no network. near: number of equal names in each network compared."""
    for pattern, what in _REFUSED.items():
        if any(re.search(rf"(^|\.)({pattern})", name) for name in tensors):
            return f"{what}; there is no such backbone here"
    nearest = max(near, key=near.__getitem__, default="")
    if nearest and near[nearest] > len(tensors) / 4:
        return f"no known network; the nearest is {nearest}"
    some = ", ".join(shown(name) for name in sorted(tensors)[:3])
    return f"no network of {', '.join(names())}: it holds {len(tensors):,} tensors, such as {some}"


def shown(name: str) -> str:
    """A name from a file, made safe for printing."""
    return name[:100] if name.isprintable() else repr(name)[:100]
