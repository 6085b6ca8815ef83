"""Valid files of every kind, made with curate itself: what the mutations start from."""

import gzip
import io
import shutil
import tarfile
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.io
import torch
from PIL import Image

import curate
from curate.archs.fsrcnn import Fsrcnn
from curate.checkpoint import MODEL_FILE, Checkpoint
from curate.store import Store

__all__ = ["TINY", "Workshop", "pictures", "tars"]

PATCH, STEP = 48, 48  # px
TINY = "fsrcnn:scale=2,d=2,s=1,m=1"
SAMPLES = Path(curate.__file__).parent / "samples"


class Workshop:
    """A folder with a store, a manifest and a run, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def copy(self) -> Path:
        """A folder that a target may spoil, with the store and the manifest that belongs to it."""
        return Path(shutil.copytree(self.made, tempfile.mkdtemp(dir=self.folder), dirs_exist_ok=True))

    @cached_property
    def made(self) -> Path:
        """`store`, scored and checked, and `all.parquet`."""
        photos, made = self.folder / "photos", self.folder / "made"
        photos.mkdir(parents=True)
        coffee = photo("photos/coffee.png", 192, 240)
        Image.fromarray(coffee).save(photos / "coffee.png")
        Image.fromarray(coffee).save(photos / "again.jpg", quality=90)
        Image.fromarray(photo("photos/astronaut.png", 100, 120)).save(photos / "astronaut.png")
        (photos / "broken.png").write_bytes(b"no picture")
        test = self.folder / "test"
        test.mkdir()
        Image.fromarray(coffee[20:180, 30:210]).save(test / "crop.png")
        curate.ingest([photos], made / "store", patch=PATCH, step=STEP)
        curate.score(made / "store", ["sobel", "entropy"])
        curate.duplicates(made / "store")
        curate.leaks(made / "store", test)
        curate.select(made / "store", "des", by="sobel", keep=0.6, with_flagged=True).save(made / "all.parquet")
        return made

    @property
    def store(self) -> Store:
        """The store as it was made."""
        return Store.open(self.made / "store")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """A tiny network with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            arch = Fsrcnn(d=2, s=1, m=1)
            return Checkpoint(arch, arch.build().state_dict(), {"steps": 3})

    def own_checkpoint(self) -> bytes:
        """model.safetensors, as `curate train` writes it."""
        self.checkpoint.save(self.folder / "run")
        return (self.folder / "run" / MODEL_FILE).read_bytes()

    def public_checkpoints(self) -> dict[str, list[bytes]]:
        """Ending -> files as others write them, for the arch `TINY` (of .mat for srcnn)."""
        import safetensors.torch

        state = dict(self.checkpoint.state)
        wrapped = {"params_ema": state, "iter": 5}
        zipped, legacy = io.BytesIO(), io.BytesIO()
        torch.save(wrapped, zipped)
        torch.save(state, legacy, _use_new_zipfile_serialization=False)
        return {
            ".safetensors": [safetensors.torch.save(state, {"format": "pt"})],
            ".pth": [zipped.getvalue(), legacy.getvalue()],
            ".mat": [_matlab(compressed) for compressed in (False, True)],
        }


def photo(name: str, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The middle of a sample photograph: uint8 HWC."""
    pixels = np.asarray(Image.open(SAMPLES / name).convert("RGB"))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def pictures() -> dict[str, list[bytes]]:
    """Ending -> small image files of that kind, of many modes and with metadata."""
    rgb = Image.fromarray(photo("photos/coffee.png", 20, 24))
    exif = rgb.getexif()
    exif[274] = 6
    grey, palette, opaque, bits = rgb.convert("L"), rgb.quantize(16), rgb.convert("RGBA"), rgb.convert("1")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        ".png": [
            _saved(rgb, "PNG", exif=exif),
            *(_saved(image, "PNG") for image in (grey, palette, opaque, bits, deep)),
            _saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
        ],
        ".jpg": [
            _saved(rgb, "JPEG", exif=exif, comment=b"words"),
            _saved(rgb, "JPEG", progressive=True, subsampling=0, restart_marker_blocks=2),
            _saved(grey, "JPEG"),
            _saved(rgb.convert("CMYK"), "JPEG"),
        ],
        ".webp": [
            _saved(rgb, "WEBP", lossless=True),
            _saved(rgb, "WEBP", exif=exif),
            _saved(opaque, "WEBP", lossless=True, exact=True),
            _saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        ],
        ".tif": [
            *(_saved(rgb, "TIFF", compression=kind) for kind in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
            _saved(palette, "TIFF"),
            _saved(bits, "TIFF", compression="tiff_lzw"),
            _saved(grey, "TIFF", tiffinfo={274: 3, 317: 2}, compression="tiff_lzw"),
            _saved(deep, "TIFF"),
        ],
        ".bmp": [_saved(image, "BMP") for image in (rgb, grey, palette, bits)],
        ".gif": [_saved(palette, "GIF"), _saved(grey, "GIF", interlace=1)],
        ".ppm": [_saved(image, "PPM") for image in (rgb, grey, bits)] + [b"P3 2 1 255 1 2 3 4 5 6\n", b"P1 2 1 0 1\n"],
    }


def tars() -> dict[str, list[bytes]]:
    """Ending -> tar files of photographs, with long names and a link."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        image = pictures()[".png"][1]
        for name in ("a.png", "folder/b.png", "long" * 40 + ".png", "名.png"):
            member = tarfile.TarInfo(name)
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return {".tar": [plain.getvalue()], ".tar.gz": [gzip.compress(plain.getvalue(), mtime=0)]}


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _matlab(compressed: bool) -> bytes:
    """SRCNN 9-1-5 as its authors' files hold it, and things beside it that are no weights."""
    rng = np.random.default_rng(0)
    shapes = {"weights_conv1": (81, 64), "weights_conv2": (64, 1, 32), "weights_conv3": (32, 25)}
    shapes |= {"biases_conv1": (64, 1), "biases_conv2": (32, 1), "biases_conv3": (1, 1)}
    arrays: dict[str, Any] = {name: rng.integers(-9, 9, shape).astype(np.float32) for name, shape in shapes.items()}
    file = io.BytesIO()
    scipy.io.savemat(file, {"note": "words", **arrays}, do_compression=compressed)
    return file.getvalue()
