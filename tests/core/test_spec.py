from __future__ import annotations

import subprocess
import sys

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
    registry.add("redraw", 1)
    registry.add("trained", 2)
    with pytest.raises(SpecError, match=r"no thing is called 'redaw'. Did you mean 'redraw'\?"):
        registry["redaw"]
    with pytest.raises(ValueError, match="two things"):
        registry.add("redraw", 3)


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
