"""Checkpoints round-trip byte for byte, public files load under their Arch, and bad files are one line each."""

import json
import pickle
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import scipy.io
import torch
from PIL import Image
from torch import Tensor

from curate import plugins, storage
from curate.archs.fsrcnn import Fsrcnn
from curate.archs.srcnn import Srcnn
from curate.checkpoint import MODEL_FILE, RECIPE_FILE, Checkpoint, _expected, check, mend, read_recipe, weights_hash
from curate.errors import CurateError, DataError, UsageError
from curate.metrics import psnr, quantise, rgb_to_y
from curate.resize import downscale, upscale

RECIPE = {"manifest": "m-1", "steps": 20, "seed": 0, "versions": {"curate": "0.1.0"}}
Wrap = Callable[[dict[str, Tensor]], Any]


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(1)
    arch = Srcnn(scale=3, kernel="9-1-5")
    return Checkpoint(arch, arch.build().state_dict(), RECIPE)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def one_line_error(kind: type[CurateError], path: Path, arch: str | None = None) -> str:
    """The message with which loading `path` is refused."""
    with pytest.raises(kind) as error:
        Checkpoint.load(path, arch)
    message = str(error.value)
    assert message.isprintable() and len(message) < 400 + len(str(path))
    return message


# Of curate's own making


def test_saved_and_loaded_is_the_same(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run")
    for path in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "run" / MODEL_FILE):
        loaded = Checkpoint.load(path)
        assert loaded.arch == checkpoint.arch
        assert loaded.recipe == RECIPE
        assert same(loaded.state, checkpoint.state)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [MODEL_FILE, RECIPE_FILE]


def test_equal_checkpoints_are_equal_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    turned = {
        key: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t
        for key, t in reversed(checkpoint.state.items())
    }
    shuffled = Checkpoint(checkpoint.arch, turned, dict(reversed(RECIPE.items())))
    checkpoint.save(tmp_path / "a")
    shuffled.save(tmp_path / "b")
    Checkpoint.load(tmp_path / "a").save(tmp_path / "c")
    for name in (MODEL_FILE, RECIPE_FILE):
        first, second, third = ((tmp_path / run / name).read_bytes() for run in "abc")
        assert first == second == third


def test_saving_over_a_checkpoint_replaces_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path)
    Checkpoint(Fsrcnn(), Fsrcnn().build().state_dict(), {"steps": 1}).save(tmp_path)
    assert Checkpoint.load(tmp_path).arch == Fsrcnn()
    assert read_recipe(tmp_path)["training"]["steps"] == 1


def test_where_the_model_is_the_recipe_is_too(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = storage.publish_bytes

    def full(path: Path, data: bytes) -> str:
        if path.name == failing:
            raise OSError(28, "No space left on device", str(path))
        return publish(path, data)

    monkeypatch.setattr(storage, "publish_bytes", full)
    for failing, left in ((RECIPE_FILE, set[str]()), (MODEL_FILE, {RECIPE_FILE})):  # noqa: B007 - `full` reads it
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(tmp_path / "run")
        assert {path.name for path in (tmp_path / "run").glob("*")} == left


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    state = Fsrcnn().build().state_dict()
    state["mid_part.1.weight"] = state["mid_part.3.weight"]  # one tensor under two names
    Checkpoint(Fsrcnn(), state, {}).save(tmp_path)
    assert same(Checkpoint.load(tmp_path).state, state)


def test_the_record_names_every_option_and_the_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path)
    record = read_recipe(tmp_path)
    expected = {"format": 1, "arch": "srcnn:scale=3,kernel=9-1-5", "weights": weights_hash(checkpoint.state)}
    expected["training"] = RECIPE
    assert record == expected
    beside = json.loads((tmp_path / RECIPE_FILE).read_text())
    assert beside.pop("checksum") and beside == expected


def test_read_recipe_does_not_import_torch(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path)
    code = "import sys, curate.checkpoint as c; c.read_recipe(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_module_has_the_weights_and_draws_no_random_number(checkpoint: Checkpoint) -> None:
    torch.manual_seed(3)
    module = checkpoint.module()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert same(dict(module.state_dict()), checkpoint.state)
    assert not module.training


def test_weights_hash_tells_names_shapes_dtypes_and_values_apart() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}
    others = [
        {"a": torch.zeros(2, 3), "c": torch.tensor(1.0)},
        {"a": torch.zeros(3, 2), "b": torch.tensor(1.0)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.tensor(1.0)},
        {"a": torch.zeros(2, 3), "b": torch.tensor(1.5)},
        {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.tensor(1.0)},
    ]
    assert weights_hash(base) == weights_hash(dict(reversed(base.items())))
    assert len({weights_hash(state) for state in [base, *others]}) == len(others) + 1


def test_an_arch_outside_curate_is_not_imported_because_a_file_says_so(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = tmp_path / "my_lab"
    lab.mkdir()
    (lab / "__init__.py").write_text("")
    source = Path(sys.modules[Srcnn.__module__].__file__ or "").read_text()
    (lab / "outside.py").write_text(source.replace("class Srcnn(", "class Outside("))
    monkeypatch.syspath_prepend(tmp_path)
    arch = plugins.parse("archs", "my_lab.outside:kernel=9-1-5")
    Checkpoint(arch, checkpoint.state, {}).save(tmp_path)
    for name in ("my_lab.outside", "my_lab"):
        monkeypatch.delitem(sys.modules, name)

    message = one_line_error(UsageError, tmp_path)
    assert message.endswith("give --arch my_lab.outside:scale=2,kernel=9-1-5")
    assert one_line_error(UsageError, tmp_path, "srcnn") == message
    assert "my_lab" not in sys.modules
    assert type(Checkpoint.load(tmp_path, "my_lab.outside:kernel=9-1-5").arch).__name__ == "Outside"


def test_asking_for_another_arch_than_the_file_has_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path)
    assert Checkpoint.load(tmp_path, "srcnn:kernel=9-1-5,scale=3").arch == checkpoint.arch
    assert Checkpoint.load(tmp_path, "srcnn").arch == checkpoint.arch  # what is left open is what the file says
    message = "is for srcnn:scale=3,kernel=9-1-5, not for srcnn:scale=2"
    assert one_line_error(UsageError, tmp_path, "srcnn:scale=2").endswith(message)
    assert one_line_error(UsageError, tmp_path, "fsrcnn").endswith("not for fsrcnn")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            '{"format": 2, "arch": "srcnn", "weights": "", "training": {}}',
            "format 2 is not one that curate",
        ),
        ('{"format": 1, "arch": "srcnn", "weights": ""}', "training: Field required"),
        ('{"format": 1', "Invalid JSON"),
        ("7", "should be an object"),
        ('{"format": 1, "arch": ["srcnn"], "weights": "", "training": {}}', "arch: Input should be a valid string"),
        ('{"format": 1, "arch": "srcnn:depth=9", "weights": "", "training": {}}', "has no option 'depth'"),
        (
            '{"format": 1, "arch": "transformer9000", "weights": "", "training": {}}',
            "no 'transformer9000' in curate.archs",
        ),
        ('{"format": 1, "arch": "srcnn", "weights": "", "training": {}}', "its weights are not those that were saved"),
    ],
)
def test_records_that_cannot_be(record: str, reason: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    safetensors.torch.save_file(checkpoint.state, tmp_path / MODEL_FILE, {"curate": record})
    assert reason in one_line_error(DataError, tmp_path)


def test_a_flipped_bit_is_noticed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path)
    data = bytearray((tmp_path / MODEL_FILE).read_bytes())
    data[-9] ^= 1
    (tmp_path / MODEL_FILE).write_bytes(data)
    assert "not those that were saved" in one_line_error(DataError, tmp_path)


# Of others' making


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"params_ema": s, "params": {key: t * 0 for key, t in s.items()}},
        lambda s: {"params": {key: t * 0 for key, t in s.items()}, "params-ema": s},
        lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 1e-3}},
        lambda s: {"model_state_dict": s},
        lambda s: {"generator": {"net": s}},
        lambda s: OrderedDict((f"module.{key}", t) for key, t in s.items()),
        lambda s: {"model": {f"module.netG.{key}": t for key, t in s.items()}},
        lambda s: {key: torch.nn.Parameter(t) for key, t in s.items()},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_foreign_wrappings(wrap: Wrap, suffix: str, tmp_path: Path) -> None:
    state = Fsrcnn().build().state_dict()
    file = tmp_path / f"net{suffix}"
    torch.save(wrap(state), file)
    loaded = Checkpoint.load(file, "fsrcnn:scale=2")
    assert same(loaded.state, state)
    assert loaded.recipe == {"source": file.name}
    assert not any(tensor.requires_grad for tensor in loaded.state.values())


def test_foreign_safetensors_and_other_precisions(tmp_path: Path) -> None:
    state = Fsrcnn().build().state_dict()
    safetensors.torch.save_file(
        {key: t.half() for key, t in state.items()}, tmp_path / "a.safetensors", {"format": "pt"}
    )
    loaded = Checkpoint.load(tmp_path / "a.safetensors", "fsrcnn")
    assert same(loaded.state, {key: t.half().float() for key, t in state.items()})


def test_options_that_the_shapes_tell_need_not_be_given(tmp_path: Path) -> None:
    torch.save(Fsrcnn(d=32, s=5, m=1).build().state_dict(), tmp_path / "small.pth")
    assert Checkpoint.load(tmp_path / "small.pth", "fsrcnn:scale=3").arch == Fsrcnn(scale=3, d=32, s=5, m=1)
    assert "mid_part" in one_line_error(DataError, tmp_path / "small.pth", "fsrcnn:m=4")


def test_the_scale_has_to_be_said(tmp_path: Path) -> None:
    torch.save(Srcnn(kernel="9-1-5").build().state_dict(), tmp_path / "net.pth")
    message = one_line_error(UsageError, tmp_path / "net.pth")
    assert message.endswith("fits srcnn of some scale: say which with --arch srcnn:scale=2,kernel=9-1-5")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert "one of dlsr, drn, drrn, edsr" in one_line_error(UsageError, tmp_path / "other.pth")


def to_matlab(state: dict[str, Tensor]) -> dict[str, Any]:
    """SRCNN's weights as its authors' MATLAB code holds them, value by value."""
    arrays: dict[str, Any] = {}
    for layer in (1, 2, 3):
        weight_OIKK = state[f"conv{layer}.weight"].numpy().astype(np.float64)
        outputs, inputs, size, _ = weight_OIKK.shape
        kernels_IKO = np.zeros((inputs, size * size, outputs))
        for o in range(outputs):
            for i in range(inputs):
                kernels_IKO[i, :, o] = weight_OIKK[o, i].flatten(order="F")
        arrays[f"weights_conv{layer}"] = {1: kernels_IKO[0], 2: kernels_IKO, 3: kernels_IKO[..., 0]}[layer]
        arrays[f"biases_conv{layer}"] = state[f"conv{layer}.bias"].numpy()[:, None].astype(np.float64)
    return arrays


@pytest.mark.parametrize("kernel", ["9-5-5", "9-1-5"])
def test_matlab_weights_are_the_same_convolutions(kernel: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    arch: Srcnn = plugins.parse("archs", f"srcnn:kernel={kernel}")
    network = arch.build()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    scipy.io.savemat(tmp_path / "net.mat", to_matlab(network.state_dict()))
    loaded = Checkpoint.load(tmp_path / "net.mat", "srcnn:scale=2")
    assert loaded.arch == arch
    assert same(loaded.state, dict(network.state_dict()))
    assert kernel in one_line_error(UsageError, tmp_path / "net.mat")
    assert "weights_conv2" not in loaded.state


def test_matlab_arrays_of_wrong_shapes(tmp_path: Path) -> None:
    arrays = to_matlab(Srcnn().build().state_dict())
    scipy.io.savemat(tmp_path / "net.mat", arrays | {"weights_conv3": np.zeros((32, 24))})
    assert "weights_conv3 should have axes IK" in one_line_error(DataError, tmp_path / "net.mat", "srcnn")
    scipy.io.savemat(tmp_path / "net.mat", arrays | {"gain": np.ones((1, 1))})
    assert one_line_error(DataError, tmp_path / "net.mat", "srcnn").endswith("does not fit srcnn; unexpected: gain")


# Bad files


class Config:
    """What trainers leave in their pickles."""


def test_a_pickle_that_wants_more_than_weights_is_refused(tmp_path: Path) -> None:
    state = Fsrcnn().build().state_dict()
    torch.save({"params": state, "config": Config()}, tmp_path / "config.pth")
    message = one_line_error(DataError, tmp_path / "config.pth", "fsrcnn")
    assert f"holds more than weights: it wants to run {Config.__module__}.Config; save its state_dict alone" in message
    torch.save(Fsrcnn().build(), tmp_path / "whole.pth")
    assert "FsrcnnNet" in one_line_error(DataError, tmp_path / "whole.pth", "fsrcnn")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"params": Trap()}))
    one_line_error(DataError, tmp_path / "trap.pth", "fsrcnn")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds no weights by name"),
        ({}, "holds no weights by name"),
        ({"a": torch.zeros(1), "lr": 0.1}, "holds more than weights by name: lr"),
        ({"a": torch.eye(3).to_sparse()}, "holds more than weights by name: a"),
        ({3: torch.zeros(1)}, "holds more than weights by name: 3"),
        ({"odd\nname\x1b": torch.zeros(1)}, r"unexpected: odd\nname\x1b"),
    ],
)
def test_pickles_that_are_no_state_dict(content: Any, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pth")
    assert reason in one_line_error(DataError, tmp_path / "net.pth", "fsrcnn")


def test_a_pickle_inside_itself_ends(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["params"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    assert "by name" in one_line_error(DataError, tmp_path / "loop.pth", "fsrcnn")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = dict(Fsrcnn().build().state_dict())
    state["extra"] = torch.zeros(1)
    state["last_part.weight"] = torch.zeros(56, 1, 7, 7)
    for key in ("first_part.0.bias", "first_part.1.weight", "mid_part.0.bias", "mid_part.1.weight"):
        del state[key]
    torch.save(state, tmp_path / "net.pth")
    message = one_line_error(DataError, tmp_path / "net.pth", "fsrcnn")
    assert "does not fit fsrcnn; missing: first_part.0.bias, first_part.1.weight, mid_part.0.bias and 1 more" in message
    assert "unexpected: extra; of another shape: last_part.weight (56, 1, 7, 7) for (56, 1, 9, 9)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    state = Fsrcnn().build().state_dict()
    state["mid_part.2.bias"][3] = value
    Checkpoint(Fsrcnn(), state, {}).save(tmp_path)
    torch.save(state, tmp_path / "net.pth")
    for path in (tmp_path, tmp_path / "net.pth"):
        assert "not finite: mid_part.2.bias" in one_line_error(DataError, path, "fsrcnn")


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "no such file or folder" in one_line_error(UsageError, tmp_path / "absent")
    assert f"has no {MODEL_FILE}" in one_line_error(UsageError, tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"x")
    assert "file of type .mat, .pt, .pth, .safetensors" in one_line_error(UsageError, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="no such file or folder"):
        Checkpoint.load("memory://nowhere/run")
    with pytest.raises(DataError, match="not a safetensors file"):
        read_recipe(tmp_path / "net.onnx")


def test_a_foreign_file_has_no_recipe(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="has no recipe"):
        read_recipe(tmp_path / "a.safetensors")


def whole_files(folder: Path) -> list[Path]:
    """A good file of every kind: curate's own, a zip pickle, a pickle of old torch, MATLAB's."""
    state = Fsrcnn(d=2, s=1, m=1).build().state_dict()
    Checkpoint(Fsrcnn(d=2, s=1, m=1), state, RECIPE).save(folder)
    torch.save(state, folder / "zip.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    scipy.io.savemat(folder / "net.mat", to_matlab(Srcnn(kernel="9-1-5").build().state_dict()), do_compression=True)
    return [folder / name for name in (MODEL_FILE, "zip.pth", "legacy.pth", "net.mat")]


@pytest.mark.filterwarnings("ignore")  # the parsers' own, on bytes that are not theirs
def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for file in whole_files(tmp_path):
        whole = file.read_bytes()
        arch = "srcnn" if file.suffix == ".mat" else "fsrcnn:d=2,s=1,m=1"
        Checkpoint.load(file, arch)
        for damaged in (b"", b"\0" * 8, b"{}" * 50, noise.bytes(500), whole[:5], whole[:60], whole[: len(whole) // 2]):
            file.write_bytes(damaged)
            one_line_error(DataError, file, arch)
        for position in noise.integers(0, len(whole), 40):
            flipped = bytearray(whole)
            flipped[position] ^= 0xFF
            file.write_bytes(flipped)
            try:
                Checkpoint.load(file, arch)  # only curate's own files know their weights' hash
            except CurateError as error:
                assert str(error).isprintable()


# Published figures


def load_rgb(file: Path) -> Tensor:
    """An image file as float32 sRGB in [0, 1], image_13HW."""
    with Image.open(file) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def set5(shared: Path) -> list[tuple[Tensor, Tensor]]:
    """(lr, hr) of Set5 x2: image_13HW of the LR_bicubic files and of the HR files."""
    folder = shared / "benchmark" / "Set5"
    names = sorted(path.stem for path in (folder / "HR").glob("*.png"))
    return [(load_rgb(folder / f"LR_bicubic/X2/{n}x2.png"), load_rgb(folder / f"HR/{n}.png")) for n in names]


@torch.no_grad()
def test_public_srcnn_measures_as_published(shared: Path) -> None:
    """36.34 dB on Set5 x2 as its authors measure: LR is made of the 8-bit luma and not rounded itself."""
    network = Checkpoint.load(shared / "checkpoints" / "srcnn_915_x2.mat", "srcnn:scale=2").module()
    figures, bicubic = [], []
    for _, hr in set5(shared):
        luma = quantise(rgb_to_y(hr))
        lr = downscale(luma, 2)
        figures.append(psnr(quantise(network(lr)), luma, border=2))
        bicubic.append(psnr(quantise(upscale(lr, 2)), luma, border=2))
    assert torch.cat(figures).mean().item() == pytest.approx(36.342, abs=0.001)
    assert torch.cat(bicubic).mean().item() == pytest.approx(33.661, abs=0.001)


@torch.no_grad()
def test_public_fsrcnn_measures_as_known(shared: Path) -> None:
    """37.06 dB on Set5 x2: luma of the LR files, not rounded; output and reference as 8-bit luma."""
    network = Checkpoint.load(shared / "checkpoints" / "fsrcnn_x2.pth", "fsrcnn:scale=2").module()
    figures = [psnr(quantise(network(rgb_to_y(lr))), quantise(rgb_to_y(hr)), border=2) for lr, hr in set5(shared)]
    assert torch.cat(figures).mean().item() == pytest.approx(37.063, abs=0.001)


# As it was written?


def test_every_flipped_bit_of_a_checkpoint_is_found_and_its_recipe_written_again(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    checkpoint.save(tmp_path)
    assert check(tmp_path) == ([tmp_path / MODEL_FILE, tmp_path / RECIPE_FILE], [])
    rng = np.random.default_rng(0)
    for name in (MODEL_FILE, RECIPE_FILE):
        data = (tmp_path / name).read_bytes()
        header = 8 * (8 + int.from_bytes(data[:8], "little")) if name == MODEL_FILE else 8 * len(data)
        bits = np.concatenate([rng.integers(0, 8 * len(data), 20), rng.integers(0, header, 60)])
        for bit in bits.tolist():
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(changed)
            assert [path.name for path, _ in check(tmp_path)[1]] == [name], bit
        if name == RECIPE_FILE:
            assert mend(tmp_path) == [tmp_path / RECIPE_FILE]
        else:
            assert mend(tmp_path) == []
            (tmp_path / name).write_bytes(data)
        assert (tmp_path / name).read_bytes() == data and check(tmp_path)[1] == []


def test_what_is_not_curate_s_cannot_be_checked(checkpoint: Checkpoint, tmp_path: Path) -> None:
    safetensors.torch.save_file(checkpoint.state, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="nothing says what it should be"):
        check(tmp_path / "x.safetensors")


# Files that claim more than they hold


class _Repeated:
    """Pickled as a tensor of any shape over the one number that there is."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __reduce__(self) -> Any:
        strides = (0,) * len(self.shape)
        return torch._utils._rebuild_tensor_v2, (torch.ones(1).storage(), 0, self.shape, strides, False, OrderedDict())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("shape", [(81, 64), (2**40, 64), (2, 3)])
def test_one_number_is_not_many_weights(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save({"weights_conv1": _Repeated(shape)}, tmp_path / "net.pth")
    assert "holds more than weights by name: weights_conv1" in one_line_error(DataError, tmp_path / "net.pth", "srcnn")


def test_a_zip_bomb_is_not_unpacked(checkpoint: Checkpoint, tmp_path: Path) -> None:
    torch.save(checkpoint.state, tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "net.pth") as plain, zipfile.ZipFile(tmp_path / "a.pth", "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
        (tmp_path / "b.pth").write_bytes((tmp_path / "net.pth").read_bytes())
    assert Checkpoint.load(tmp_path / "a.pth", "srcnn:scale=3").state.keys() == checkpoint.state.keys()
    with zipfile.ZipFile(tmp_path / "b.pth", "a", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data/99", bytes(2**24))
    assert "would unpack to" in one_line_error(DataError, tmp_path / "b.pth", "srcnn:scale=3")


HUGE = [
    "edsr:scale=2,features=64,blocks=1000000000,res_scale=1.0",
    "edsr:scale=2,features=1000000,blocks=16,res_scale=1.0",
    "edsr:scale=2,features=1000000000000000,blocks=16,res_scale=1.0",
    "rcan:scale=2,groups=100000,blocks=100000,reduction=16,features=64",
    "fsrcnn:scale=2,d=99999999999,s=12,m=4",
    "fsrcnn:scale=2,d=56,s=12,m=2000000000",
    "fsrcnn:scale=2,d=99999999999,s=12,m=4,config=1.1.1.1.1.1.1",
    "edsr:scale=2,features=64,blocks=1000000000,config=1.1",
    "rdn:scale=2,blocks=1,layers=1000000000,config=1.1",
]


@pytest.mark.parametrize("spec", HUGE)
def test_a_network_of_any_size_that_a_file_claims_is_not_built(spec: str, tmp_path: Path) -> None:
    weights = {"weight": torch.ones(3)}
    record = {"format": 1, "arch": spec, "weights": weights_hash(weights), "training": {}}
    safetensors.torch.save_file(weights, tmp_path / "net.safetensors", {"curate": json.dumps(record)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "does not fit" in one_line_error(DataError, tmp_path / "net.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_memory_is_not_taken_for_what_a_config_removes(tmp_path: Path) -> None:
    """All weights would be there, and fit."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Fsrcnn(config="1.1.1.1.1.1.1").build().state_dict().items()}
    weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    huge = f"fsrcnn:scale=2,d={10**8},s=12,m=4,config=1.1.1.1.1.1.1"
    record = {"format": 1, "arch": huge, "weights": weights_hash(weights), "training": {}}
    safetensors.torch.save_file(weights, tmp_path / "net.safetensors", {"curate": json.dumps(record)})
    message = one_line_error(DataError, tmp_path / "net.safetensors")
    assert message.endswith("it has 159 numbers, the network more than 300000000")


def test_a_record_opens_no_config(tmp_path: Path) -> None:
    """Whoever made it would choose what is read here, or which server is asked."""
    file = tmp_path / "config.txt"
    file.write_text("3\n4\n")
    weights = Srcnn(config="3.4").build().state_dict()
    for named in (str(file), f'"{file}"'):
        record = {"format": 1, "arch": f"srcnn:config={named}", "weights": weights_hash(weights), "training": {}}
        safetensors.torch.save_file(weights, tmp_path / "net.safetensors", {"curate": json.dumps(record)})
        assert f"it names another file, '{file}'" in one_line_error(DataError, tmp_path / "net.safetensors")


def test_a_long_config_is_cut_in_messages(tmp_path: Path) -> None:
    Checkpoint(Srcnn(config="3.4"), Srcnn(config="3.4").build().state_dict(), {}).save(tmp_path)
    long = ".".join("9" * 99)
    message = one_line_error(UsageError, tmp_path, f"drn:config={'.'.join(['2'] * 64)},scale=4")
    cut = "2.2.2.2.2.2.2.2.2.2….2.2.2.2.2.2.2.2.2.2"
    assert message.endswith(f"is for srcnn:scale=2,kernel=9-5-5,config=3.4, not for drn:config={cut},scale=4")
    assert plugins.shown(f"drn:config={long},scale=4") == f"drn:config={long[:19]}…{long[-20:]},scale=4"


@pytest.mark.parametrize("name", plugins.names("archs"))
def test_what_is_expected_of_a_file_is_the_state_of_the_network(name: str, tmp_path: Path) -> None:
    arch = plugins.parse("archs", name)
    state = arch.build().state_dict()
    expected = _expected(tmp_path, state, arch)
    assert list(expected) == list(state)
    assert all(expected[key].shape == tensor.shape for key, tensor in state.items())
    assert all(expected[key].dtype == tensor.dtype for key, tensor in state.items())
