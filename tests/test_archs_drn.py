"""DRN is the published network: its counts, its answers at every scale, and the sizes that published configs leave."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from curate import plugins
from curate.archs.drn import Drn
from curate.errors import UsageError
from curate.macs import multiply_adds, parameters
from curate.units import text

LR = 96  # px: the side of the input for which the authors count multiply-adds


@pytest.mark.parametrize(
    ("spec", "count", "giga"),
    [
        ("drn", 4_804_065, 109.73),
        ("drn:size=l", 9_825_893, 224.45),
        ("drn:scale=8", 5_403_000, None),
        ("drn:size=l,scale=8", 10_004_018, None),
    ],
)
def test_counts_are_the_published_ones(spec: str, count: int, giga: float | None) -> None:
    arch = plugins.parse("archs", spec)
    assert parameters(arch) == count
    if giga is not None:
        assert round(multiply_adds(arch, 4 * LR, 4 * LR) / 1e9, 2) == giga


def test_a_config_takes_rows_of_one_layer_and_columns_of_the_next() -> None:
    """In numbers: k maps of 16, 32 and 64 less in the layers of DRN-S."""
    arch = Drn()
    widths = [unit.width for unit in arch.prunable()]
    kept = [width - 1 - number % (width // 2) for number, width in enumerate(widths)]
    gone = [width - left for width, left in zip(widths, kept, strict=True)]
    down = [9 * 16 + 9 * 32, 9 * 32 + 9 * 64]  # weights of a map: of the conv that makes it, of the one that reads it
    block = 9 * 64 + 1 + 9 * 64
    up = [4 * (9 * 64 + 1) + 32, 4 * (9 * 64 + 1) + 16]
    of_a_map = [*down, *[block] * 30, up[0], *[block] * 30, up[1]]
    expected = 4_804_065 - sum(number * weights for number, weights in zip(gone, of_a_map, strict=True))
    assert parameters(Drn(config=text(kept, arch.prunable()))) == expected


@pytest.mark.parametrize(
    ("file", "spec", "count", "giga"),
    [
        ("drn_s_x4_03.txt", "drn", 3_116_637, 72.04),
        ("drn_s_x4_05.txt", "drn", 2_267_417, 52.87),
        ("swinir_light_x4.txt", "swinir:variant=light,scale=4", 631_632, None),  # and its dual network's 3,168: 634,800
    ],
)
def test_published_configs_leave_the_published_sizes(
    file: str, spec: str, count: int, giga: float | None, shared: Path
) -> None:
    if not (shared / "drc-configs" / file).is_file():
        pytest.skip("needs ../shared/data/drc-configs (published numbers of maps), absent here")
    arch = plugins.parse("archs", f"{spec}{',' if ':' in spec else ':'}config={shared / 'drc-configs' / file}")
    assert parameters(arch) == count
    if giga is not None:
        assert round(multiply_adds(arch, 4 * LR, 4 * LR) / 1e9, 2) == giga


@pytest.mark.parametrize("scale", [4, 8])
def test_answers_are_of_every_scale_and_the_last_is_the_networks(scale: int) -> None:
    torch.manual_seed(0)
    arch = Drn(scale=scale, features=4, blocks=1)
    net, lr_BCHW = arch.build().eval(), 255 * torch.rand(2, 3, 5, 7)
    with torch.no_grad():
        answers = net.scales(lr_BCHW)
        assert torch.equal(net(lr_BCHW), answers[-1])
    assert [sr_BCHW.shape[2:] for sr_BCHW in answers] == [(5 * by, 7 * by) for by in arch.outputs]
    assert arch.outputs == tuple(2**power for power in range(scale.bit_length()))
    assert isinstance(net.get_submodule(arch.tail), torch.nn.Conv2d)


def test_the_mean_goes_and_comes_back() -> None:
    """With tails of zeros the answer is the mean of DIV2K, whatever the input."""
    net = Drn(features=4, blocks=1).build()
    for tail in net.tail:
        torch.nn.init.zeros_(tail.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(tail.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        for answer in net.scales(255 * torch.rand(1, 3, 4, 4)):
            mean_C11 = 255 * torch.tensor([0.4488, 0.4371, 0.4040]).reshape(3, 1, 1)
            torch.testing.assert_close(answer, mean_C11.expand_as(answer))
        assert F.mse_loss(net.add_mean(net.sub_mean(answer)), answer) < 1e-6


def test_sizes_have_one_name() -> None:
    assert Drn(features=16, blocks=30) == Drn()
    assert plugins.spec_of(Drn(scale=8, features=8)) == "drn:scale=8"
    assert Drn(features=20, blocks=40) != Drn(size="l") and Drn(size="l").dual_features == 20


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("drn:scale=2", "scale should be 4 or 8, found 2"),
        ("drn:size=m", "'s' or 'l'"),
        ("drn:features=3", "features should be at least 4 and blocks at least 1, found features=3, blocks=30"),
        ("drn:blocks=0", "found features=16, blocks=0"),
        ("drn:config=12.20", "config should have a number for each of the 64 units, found 2"),
        ("drn:blocks=1,config=17.32.64.64.64.64", "number 1, of down.0.dual_module, should be a number from 1 to 16"),
    ],
)
def test_options_out_of_range_are_one_line(spec: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        plugins.parse("archs", spec)
    assert reason in str(error.value) and str(error.value).isprintable()
