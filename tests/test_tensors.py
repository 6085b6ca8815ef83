"""Pixels and tensors: round trips, layout, and the devices that can be asked for."""

import numpy as np
import pytest
import torch

from curate.errors import UsageError
from curate.metrics import quantise
from curate.tensors import crop_to_multiple, pick_device, to_float, to_pixels, to_tensor


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_round_trip(channels: int) -> None:
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    pixels_HWC.flags.writeable = False  # as arrays over a file's bytes are
    image_CHW = to_tensor(pixels_HWC)
    assert (image_CHW.shape, image_CHW.dtype, image_CHW.is_contiguous()) == ((channels, 5, 7), torch.uint8, True)
    assert image_CHW[0, 4, 2] == pixels_HWC[4, 2, 0]
    found = to_pixels(image_CHW)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels_HWC)
    image_CHW.zero_()  # a copy: the pixels stay
    assert pixels_HWC.any()


def test_to_tensor_takes_views() -> None:
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    window = pixels_HWC[1:5, ::-1]  # negative strides, which torch's own from_numpy refuses
    np.testing.assert_array_equal(to_pixels(to_tensor(window)), window)


def test_to_float_is_exact() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_float(levels)
    assert values.dtype == torch.float32
    assert (values[0], values[-1]) == (0, 1)
    assert torch.equal((values * 255).round().to(torch.uint8), levels)
    assert torch.equal(quantise(values), values)


def test_crop_to_multiple() -> None:
    image_BCHW = torch.arange(2 * 3 * 25 * 40).reshape(2, 3, 25, 40)
    assert torch.equal(crop_to_multiple(image_BCHW), image_BCHW[:, :, :24, :36])
    assert torch.equal(crop_to_multiple(image_BCHW[0, 0], 5), image_BCHW[0, 0])
    assert crop_to_multiple(image_BCHW, 7).shape == (2, 3, 21, 35)


def test_pick_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "mps", "gpu", "meta", ""):
        with pytest.raises(UsageError, match=f"no device '{name}' here; there are: auto, cpu$"):
            pick_device(name)


def test_pick_device_among_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="no device 'cuda:2' here; there are: auto, cpu, cuda:0, cuda:1"):
        pick_device("cuda:2")
