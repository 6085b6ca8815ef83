"""Config stubs: what a tool's configuration has to say so that it reads an exported core-set.

Each is the data section of that tool's own format with the fewest keys, to be put into a configuration that has a
network and a training section. Paths are absolute, for those tools are run from their own folders: edit them when the
export is moved. Where there is no LR, the section is that of the tool's dataset which makes LR images itself, and the
scale and the degradations are left to the user.

The same crop is called `gt_size` and `H_size` in HR px, `lq_size` and `patch_size` in LR px.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

__all__ = ["Data", "basicsr", "huggingface", "kair", "neosr", "trainner", "webdataset"]

_LR_CROP = 48  # px: what most networks of the literature are trained on
_LARGEST_SCALE = 4  # crops of HR alone are of a size that does for every scale
_BATCH = 16
_WORKERS = 4  # of each tool's DataLoader
_EPOCH_STEPS = 1000  # readers start their workers anew every epoch: one of a small core-set would be over in no time
_SEED = 0


@dataclass(frozen=True)
class Data:
    """What the stubs tell of an export."""

    hr: Path  # folder or LMDB
    lr: Path | None
    scale: int | None
    side: int  # px, the shortest side of an HR image
    num_images: int
    meta_info: Path | None = None  # list of HR files, for a reader that takes one
    lmdb: bool = False

    @property
    def lr_crop(self) -> int:
        """Side of a training crop, LR px."""
        return min(_LR_CROP, self.side // (self.scale or _LARGEST_SCALE))

    @property
    def hr_crop(self) -> int:
        """The same in HR px."""
        return self.lr_crop * (self.scale or _LARGEST_SCALE)

    @property
    def enlarge(self) -> int:
        """How often an epoch should repeat the data."""
        return ceil(_EPOCH_STEPS * _BATCH / self.num_images)


def basicsr(data: Data) -> str:
    """BasicSR: YAML. `meta_info_file` of pairs and `meta_info` of HR images are the same file."""
    train = {
        "name": "coreset",
        "type": "PairedImageDataset" if data.lr else "RealESRGANDataset",
        "dataroot_gt": data.hr,
        "dataroot_lq": data.lr,
        "meta_info_file" if data.lr else "meta_info": data.meta_info,
        "io_backend": {"type": "lmdb" if data.lmdb else "disk"},
        "gt_size": data.hr_crop if data.lr else None,
        "use_hflip": True,
        "use_rot": True,
        "num_worker_per_gpu": _WORKERS,
        "batch_size_per_gpu": _BATCH,
        "dataset_enlarge_ratio": data.enlarge,
    }
    options = {
        "scale": data.scale,
        "manual_seed": _SEED,
        "gt_size": None if data.lr else data.hr_crop,  # Real-ESRGAN's model crops, not its dataset
        "datasets": {"train": train},
    }
    return "\n".join(["# Data for BasicSR. gt_size: HR px.", *_yaml(options), ""])


def neosr(data: Data) -> str:
    """neosr: TOML. No seed, for there it also turns slow deterministic kernels on; no meta_info, which it misreads."""
    train = {
        "type": "paired" if data.lr else "otf",
        "dataroot_gt": data.hr,
        "dataroot_lq": data.lr,
        "io_backend.type": "lmdb" if data.lmdb else None,
        "patch_size": data.lr_crop,
        "batch_size": _BATCH,
        "use_hflip": True,
        "use_rot": True,
        "dataset_enlarge_ratio": data.enlarge,
    }
    lines = ["# Data for neosr. patch_size: LR px.", *_toml({"scale": data.scale})]
    return "\n".join([*lines, "", "[datasets.train]", *_toml(train), ""])


def trainner(data: Data) -> str:
    """traiNNer-redux: YAML. It refuses unknown keys, finds the enlargement itself, and misreads meta_info and LMDB."""
    train = {
        "name": "coreset",
        "type": "pairedimagedataset" if data.lr else "realesrgandataset",
        "dataroot_gt": [str(data.hr)],
        "dataroot_lq": [str(data.lr)] if data.lr else None,
        "io_backend": {"type": "disk"},
        "lq_size": data.lr_crop,
        "use_hflip": True,
        "use_rot": True,
        "num_worker_per_gpu": _WORKERS,
        "batch_size_per_gpu": _BATCH,
    }
    options = {"scale": data.scale, "manual_seed": _SEED, "datasets": {"train": train}}
    return "\n".join(["# Data for traiNNer-redux. lq_size: LR px.", *_yaml(options), ""])


def kair(data: Data) -> str:
    """KAIR: JSON. Pairs are told by their place in the two sorted lists; without LR it makes the bicubic itself."""
    train = {
        "name": "coreset",
        "dataset_type": "sr",
        "dataroot_H": str(data.hr),
        "dataroot_L": str(data.lr) if data.lr else None,
        "H_size": data.hr_crop,
        "dataloader_shuffle": True,
        "dataloader_num_workers": _WORKERS,
        "dataloader_batch_size": _BATCH,
    }
    scale = {"scale": data.scale} if data.scale else {}
    options = {**scale, "n_channels": 3, "datasets": {"train": train}}
    return json.dumps(options, indent=2, ensure_ascii=False) + "\n"


def webdataset(scale: int | None) -> str:
    """The webdataset library: a program of a few lines, which finds the shards beside itself."""
    fields = ["hr.png", f"lr{scale}.png", "json"] if scale else ["hr.png", "json"]
    return f'''"""Read this core-set with webdataset: tuples of {", ".join(fields)}; images are uint8 HWC."""

from pathlib import Path

import webdataset

shards = sorted(str(path) for path in Path(__file__).with_name("shards").glob("*.tar"))
samples = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).decode("rgb8")
samples = samples.to_tuple({", ".join(f'"{field}"' for field in fields)})
'''


def huggingface(title: str, scale: int | None) -> str:
    """Hugging Face datasets: the card, whose head says which files are the data."""
    images = f"`hr`, and `lr`, {scale} times smaller," if scale else "`hr`"
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
task_categories:
- image-to-image
---

# {title}

Training windows for super-resolution, best first: {images} are images. `load_dataset` of this folder reads it.
`weight` is the factor of a window's loss; `manifest.parquet` has the recipe by which the windows were chosen.
"""


def _yaml(options: Mapping[str, Any], indent: str = "") -> list[str]:
    """Nested options as block YAML; JSON, which is YAML, for the values. None is left out."""
    lines = []
    for key, value in options.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *_yaml(value, indent + "  ")]
        elif value is not None:
            lines.append(f"{indent}{key}: {_literal(value)}")
    return lines


def _toml(options: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_literal(value)}" for key, value in options.items() if value is not None]


def _literal(value: Any) -> str:
    """A value as YAML, TOML and JSON alike write it."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
