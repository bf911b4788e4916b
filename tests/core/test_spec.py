from __future__ import annotations

import subprocess
import sys
from typing import Literal, NamedTuple

import pytest

from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import Registry, Spec, canonical, digest, generator, numpy_generator


class Point(Spec):
    x: int = 0
    y: tuple[int, ...] = ()


def test_equal_values_have_equal_digests_and_others_do_not() -> None:
    assert digest(Point(x=1)) == digest(Point(x=1, y=())) == digest({"y": [], "x": 1})
    assert digest(Point(x=1)) != digest(Point(x=2))
    assert canonical({"b": Point(), "a": 1}) == '{"a":1,"b":{"x":0,"y":[]}}'


def test_randomness_is_named_and_touches_no_global_generator() -> None:
    import torch

    before = torch.random.get_rng_state()
    a = torch.randn(4, generator=generator(0, "a", 1))
    assert torch.equal(a, torch.randn(4, generator=generator(0, "a", 1)))
    for other in [(1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1")]:
        assert not torch.equal(a, torch.randn(4, generator=generator(*other)))
    assert numpy_generator(0, "a").random() == numpy_generator(0, "a").random()
    assert torch.equal(before, torch.random.get_rng_state())


def test_registry_names_the_nearest() -> None:
    registry: Registry[int] = Registry("thing")
    registry.add(1, name="redraw")
    registry.add(2, name="trained")
    with pytest.raises(SpecError, match=r"no thing is called 'redaw'. Did you mean 'redraw'\?"):
        registry["redaw"]
    with pytest.raises(ValueError, match="two things"):
        registry.add(3, name="redraw")
    assert dict(registry.entries) == {"redraw": 1, "trained": 2}


def test_registry_takes_the_name_that_an_entry_has() -> None:
    class Named(NamedTuple):
        name: str

    class Halved(Spec):
        kind: Literal["halved"] = "halved"

    def short(entry: Named) -> None:
        if len(entry.name) > 6:
            raise ValueError(f"{entry.name} is long")

    things: Registry[Named] = Registry("thing", short)
    assert things.add(Named("first")) == things["first"] == Named("first")
    with pytest.raises(ValueError, match="two things are called 'first'"):
        things.add(Named("first"))
    with pytest.raises(ValueError, match="lengthy is long"):
        things.add(Named("lengthy"))
    assert list(things) == ["first"]
    kinds: Registry[type[Spec]] = Registry("kind")
    assert kinds.add(Halved) is Halved is kinds["halved"]
    with pytest.raises(ValueError, match="a kind has neither a `kind` nor a `name`"):
        kinds.add(Spec)


def test_no_module_of_the_package_imports_torch() -> None:
    code = (
        "import pkgutil, importlib, sys, sae_placebo\n"
        "for m in pkgutil.walk_packages(sae_placebo.__path__, 'sae_placebo.'):\n"
        "    importlib.import_module(m.name)\n"
        "heavy = ('torch', 'transformers', 'pandas', 'plotly', 'matplotlib', 'sklearn')\n"
        "print(sorted(m for m in heavy if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
