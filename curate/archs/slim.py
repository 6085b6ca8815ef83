"""Slim: the network of another arch, with fewer maps; for archs that have no `config` of their own.

    slim:arch="my_lab.net:width=8",scale=2,units=16-head.weight-head.bias-last.weight,config=12

`curate drc` writes such a spec for a network that it does not know, with the units that it has found in it
(`curate.drc.foreign`, by Torch-Pruning). They stand in the spec, so that whoever loads the network needs neither
Torch-Pruning nor the same answer of it. As text a unit is how many maps it has, the parameters whose axis 0 they lie
along, and last the one that reads them along its axis 1, with dashes between; `@1` and `@0` after a parameter say the
other axis, as transposed convolutions have it. Pluses stand between units.

All else is that of the arch named: colour, range, loss, outputs, and the names of weights.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from curate import plugins
from curate.archs import Arch
from curate.archs._narrow import built
from curate.errors import UsageError, one_line
from curate.units import PrunableUnit, Span, settled

__all__ = ["Slim", "is_writable", "written"]

_SCALE = 2  # the default, which the inner spec may overrule
_MAKES, _READS = 0, 1  # axes of a layer's weights: what it makes, what it reads
_PARAMETER = re.compile(r"\w+(\.\w+)*")
_UNIT = re.compile(rf"[1-9]\d{{0,5}}(-{_PARAMETER.pattern}(@[01])?){{2,}}")


@dataclass(frozen=True)
class Slim(Arch):
    """Slim's options."""

    scale: int = 2  # that of the arch; one that its spec says goes first
    arch: str = "srcnn:kernel=9-5-5"  # the spec of the whole network, between double quotes where it has commas
    units: str = ""  # what can be removed from it: see above
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    def __post_init__(self) -> None:
        spec = self.arch.strip('"')
        inner = _inner(spec, self.scale)
        if self.scale not in (_SCALE, inner.scale):
            raise ValueError(f"scale should be {inner.scale}, that of {one_line(spec)}, found {self.scale}")
        full = plugins.full_spec(inner, without="scale").removesuffix(":")
        if '"' in full:
            raise ValueError(f"arch should have no option with a comma or a quote, found {one_line(full)}")
        object.__setattr__(self, "scale", inner.scale)
        object.__setattr__(self, "arch", f'"{full}"' if "," in full else full)
        self.prunable()  # what cannot be read is refused here, as other options are
        object.__setattr__(self, "config", settled(self))

    @cached_property
    def inner(self) -> Arch:
        """The arch of the whole network."""
        return _inner(self.arch.strip('"'), self.scale)

    @property
    def colour(self) -> Literal["y", "rgb"]:
        return self.inner.colour

    @property
    def peak(self) -> float:
        return self.inner.peak

    @property
    def least(self) -> int:  # type: ignore[override]
        return self.inner.least

    @property
    def hfen(self) -> float:  # type: ignore[override]
        return self.inner.hfen

    @property
    def tail(self) -> str | None:  # type: ignore[override]
        return self.inner.tail

    @property
    def outputs(self) -> tuple[int, ...]:
        return self.inner.outputs

    @property
    def dual_features(self) -> int:
        return self.inner.dual_features

    def build(self) -> nn.Module:
        """A fresh network as the arch named draws it, less what is removed.

        UsageError where the units are not of its network.
        """
        net, units = self.inner.build(), self.prunable()
        parameters, seen = dict(net.named_parameters()), set()
        for unit in units:
            for span in unit.spans:
                weight = parameters.get(span.parameter)
                is_there = weight is not None and span.axis < weight.ndim and weight.shape[span.axis] == unit.width
                if not is_there or (span.parameter, span.axis) in seen:
                    raise UsageError(f"units do not fit {one_line(self.arch)}: {one_line(span.parameter)}")
                seen.add((span.parameter, span.axis))
        return built(net, self)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """As the arch named does."""
        return self.inner.adapt(state)

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """Nothing: no weights say what was removed from where."""
        return {}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """The units that the option says, in its order."""
        return tuple(_unit(text) for text in self.units.split("+")) if self.units else ()


def is_writable(parameter: str) -> bool:
    """Whether a unit's text can name the parameter: one of a ModuleDict may have any character in its name."""
    return _PARAMETER.fullmatch(parameter) is not None


def written(units: Sequence[PrunableUnit]) -> str:
    """The option `units` that says these, whose maps take whole axes."""
    return "+".join(
        "-".join([str(unit.width), *(_text(span, _MAKES) for span in unit.makers), _text(unit.readers[0], _READS)])
        for unit in units
    )


def _text(span: Span, usual: int) -> str:
    return span.parameter if span.axis == usual else f"{span.parameter}@{span.axis}"


def _unit(text: str) -> PrunableUnit:
    if not _UNIT.fullmatch(text):
        raise ValueError(f"units should be such as 16-head.weight-head.bias-last.weight, found {one_line(text)}")
    width, *names = text.split("-")
    makers = tuple(_span(name, _MAKES) for name in names[:-1])
    return PrunableUnit(makers[0].parameter.rpartition(".")[0], int(width), makers, readers=(_span(names[-1], _READS),))


def _span(text: str, usual: int) -> Span:
    parameter, _, axis = text.partition("@")
    return Span(parameter, int(axis) if axis else usual)


def _inner(spec: str, scale: int) -> Arch:
    """The arch of a spec, of this scale where it has such an option and does not say it itself."""
    name = spec.partition(":")[0]
    if name == "slim":
        raise ValueError("arch should be another one than slim, whose config removes more by itself")
    has_scale = "scale" in plugins.options_of(plugins.parse("archs", name))
    more = {"scale": scale} if has_scale and "scale" not in plugins.given_in(spec) else {}
    arch: Arch = plugins.parse("archs", spec, **more)
    return arch
