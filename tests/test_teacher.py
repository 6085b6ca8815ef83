"""Teachers: what is compared, by hand, and one line for a network that cannot be one."""

from dataclasses import replace

import pytest
import torch
from test_training import NET, Probe, fresh, refusal

from curate import plugins
from curate.archs import Arch
from curate.archs.drn import Drn
from curate.checkpoint import Checkpoint
from curate.config import TrainConfig
from curate.dual import Regression
from curate.errors import UsageError
from curate.teacher import Teacher, check_teacher

CONFIG = TrainConfig(steps=1)
CPU = torch.device("cpu")
EDSR = plugins.parse("archs", "edsr:scale=4,features=4,blocks=1")

# A small one of every arch.
TINY = {
    "dlsr": "scale=2,features=8",
    "drn": "scale=4,features=4,blocks=1",
    "drrn": "scale=2,features=4,units=1",
    "edsr": "scale=2,features=4,blocks=1",
    "fsrcnn": "scale=2,d=4,s=2,m=1",
    "idn": "scale=2,features=12,d=4,blocks=1",
    "imdn": "scale=2,features=16",
    "rcan": "scale=2,features=8,groups=1,blocks=1,reduction=2",
    "rdn": "scale=2,features=4,growth=4,blocks=1,layers=1",
    "slim": "scale=2,arch=srcnn:kernel=9-1-5",
    "srcnn": "scale=2,kernel=9-1-5",
    "swinir": "scale=2,embed=12,groups=1,blocks=2,heads=2",
    "unet": "scale=2,features=4,levels=2",
}


def made(arch: Arch | str, seed: int = 0) -> Checkpoint:
    known = plugins.parse("archs", arch) if isinstance(arch, str) else arch
    return Checkpoint(known, fresh(known, seed).state_dict(), {})


@pytest.mark.parametrize("by", ["features", "answer"])
@pytest.mark.parametrize("arch", [plugins.parse("archs", NET), EDSR], ids=["luma", "rgb"])
def test_a_network_is_its_own_best_teacher(by: str, arch: Arch) -> None:
    lr_BCHW = arch.peak * torch.rand(2, 1 if arch.colour == "y" else 3, 6, 6)
    teacher = Teacher(made(arch), arch, by, CPU)  # type: ignore[arg-type]
    for seed in (0, 1):
        student = Regression(arch, fresh(arch, seed), watched=by == "features")
        distance_B = teacher.distance(student(lr_BCHW), teacher(lr_BCHW))
        assert distance_B.shape == (2,) and bool((distance_B > 1e-8).all()) == bool(seed)
    assert teacher(lr_BCHW).grad_fn is None and not any(p.requires_grad for p in teacher.net.parameters())


def test_maps_are_compared_by_their_means_whatever_their_number() -> None:
    wide = plugins.parse("archs", "rcan:scale=4,features=8,groups=1,blocks=1,reduction=2")
    teacher = Teacher(made(wide), EDSR, "features", CPU)
    student = Regression(EDSR, fresh(EDSR), watched=True)
    teacher.check(student, 5)
    lr_BCHW = 255 * torch.rand(2, 3, 5, 5)
    entered: list[torch.Tensor] = []
    nets = (student.net, made(wide).module())
    for net in nets:
        net.get_submodule("conv_last").register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        net(lr_BCHW)
    own, other = (maps.mean(1) for maps in entered)
    expected_B = (own - other).square().mean((1, 2))
    torch.testing.assert_close(teacher.distance(student(lr_BCHW), teacher(lr_BCHW)), expected_B)


def test_answers_are_compared_in_the_students_range() -> None:
    imdn = made("imdn:scale=4,features=16")  # values up to 1, EDSR's up to 255
    teacher = Teacher(imdn, EDSR, "answer", CPU)
    lr_BCHW = torch.rand(2, 3, 8, 8)
    wanted = teacher(255 * lr_BCHW)
    torch.testing.assert_close(wanted, 255 * imdn.module()(lr_BCHW), rtol=0, atol=1e-3)
    answer = Regression(EDSR, fresh(EDSR))(255 * lr_BCHW)
    torch.testing.assert_close(teacher.distance(answer, wanted), (answer.srs[0] - wanted).abs().mean((1, 2, 3)))


def test_a_network_that_answers_at_several_scales_is_compared_at_the_last() -> None:
    drn = Drn(features=4, blocks=1)
    teacher = Teacher(made(drn), EDSR, "answer", CPU)
    lr_BCHW = 255 * torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(teacher(lr_BCHW), made(drn).module()(lr_BCHW))


@pytest.mark.parametrize("name", plugins.names("archs"))
def test_every_network_says_which_layer_is_its_last(name: str) -> None:
    """Its maps have the size of LR or HR, of crops that are filled up to whole windows too; and it can be a teacher."""
    arch = plugins.parse("archs", f"{name}:{TINY[name]}")
    assert arch.tail is not None
    layer = fresh(arch).get_submodule(arch.tail)
    assert isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    teacher = Teacher(made(arch), arch, "features", CPU)
    student = Regression(arch, fresh(arch, seed=1), watched=True)
    for side in (16, 20):
        teacher.check(student, side)
        assert student.training and student.net.training
    lr_BCHW = torch.zeros(1, 1 if arch.colour == "y" else 3, 16, 16)
    maps_BHW = student(lr_BCHW).maps_BHW
    assert maps_BHW is not None and maps_BHW.shape[-1] in (16, 16 * arch.scale)
    assert teacher(lr_BCHW).shape == maps_BHW.shape  # of windows filled up as the student fills them


def test_looking_at_sizes_draws_no_random_numbers_of_the_callers() -> None:
    arch = plugins.parse("archs", f"swinir:{TINY['swinir']},drop_path=0.5")
    teacher, student = Teacher(made(arch), arch, "features", CPU), Regression(arch, fresh(arch), watched=True)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    teacher.check(student, 8)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("student", "teacher", "changes", "reason"),
    [
        ("edsr", "edsr:scale=3", {}, "a teacher of edsr should have scale 2: edsr:scale=3 has scale 3"),
        ("edsr", "fsrcnn", {}, "a teacher of edsr should have colour rgb: fsrcnn has colour y"),
        (Probe(), "edsr", {}, "does not say which layer is its last"),
        ("edsr", Probe(), {}, "whose maps a teacher is compared by; train with --teacher-by answer"),
        ("edsr", None, {"teacher_weight": 2.0}, "teacher_weight goes with a teacher; name its checkpoint with --teach"),
        ("edsr", None, {"teacher_by": "answer"}, "teacher_by goes with a teacher"),
    ],
)
def test_what_cannot_be_a_teacher_is_one_line(
    student: Arch | str, teacher: Arch | str | None, changes: dict[str, object], reason: str
) -> None:
    arch = plugins.parse("archs", student) if isinstance(student, str) else student
    given = None
    if teacher is not None:
        given = Checkpoint(plugins.parse("archs", teacher) if isinstance(teacher, str) else teacher, {}, {})
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert reason in refusal(UsageError, lambda: check_teacher(arch, config, given))
    if isinstance(student, Probe) or isinstance(teacher, Probe):
        check_teacher(arch, replace(config, teacher_by="answer"), given)


def test_maps_of_another_size_are_one_line() -> None:
    light = plugins.parse("archs", "imdn:scale=4,features=16")
    teacher = Teacher(made(EDSR), light, "features", CPU)
    student = Regression(light, fresh(light), watched=True)
    message = refusal(UsageError, lambda: teacher.check(student, 6))
    assert "have different sizes, 6x6 and 24x24; train with --teacher-by answer" in message
    Teacher(made(EDSR), light, "answer", CPU).check(student, 6)


def test_the_light_swinir_ends_in_another_layer_than_the_classical_one() -> None:
    classical = plugins.parse("archs", f"swinir:{TINY['swinir']}")
    light = replace(classical, variant="light")  # type: ignore[type-var]
    assert (classical.tail, light.tail) == ("conv_last", "upsample.0")
    student = Regression(light, fresh(light), watched=True)
    message = refusal(UsageError, lambda: Teacher(made(classical), light, "features", CPU).check(student, 8))
    assert "have different sizes, 8x8 and 16x16" in message
