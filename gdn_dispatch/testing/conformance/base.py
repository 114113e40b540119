"""What every group of tests stands on: the backend under test, and what is expected of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from gdn_dispatch.capability import Feature
from gdn_dispatch.testing.rule_inputs import Dims
from gdn_dispatch.testing.subject import FORMS, Subject, find_subject, why_not_here
from gdn_dispatch.testing.xfails import matching, read_exclusions

__all__ = ["Conformance", "forms", "layer_test", "needs", "needs_state_layout"]

TestT = TypeVar("TestT", bound=Callable[..., Any])

forms = pytest.mark.parametrize("form", list(FORMS))
_LAYER = Feature.GDN_ATTENTION


def needs(*features: Feature) -> pytest.MarkDecorator:
    """A test is expected to pass only where all of these are declared."""
    return pytest.mark.gdn_needs(*features)


def layer_test(*features: Feature) -> pytest.MarkDecorator:
    """The same for a test of ``gdn_attention``."""
    return needs(_LAYER, *features)


needs_state_layout = pytest.mark.parametrize("v_first", [False, True], ids=["K first", "V first"])


class Conformance:
    """Base of all groups; a backend's class sets these.

    Attributes:
        backend: Name of the backend; without it ``--gdn-backend``.
        device: Where to test it, such as ``cuda:1``; without it ``--gdn-device``, then the first of
            its device types.
        xfails: File of what may fail; without it ``--gdn-xfails``.
        tolerances: Relative errors by dtype, where the kit's are not met; say why beside them.
        try_undeclared: Whether to run tests of what is not declared, expecting them to fail. A
            backend that takes the whole process with it should say False: they are skipped then.
        pool_layout: Fields of ``PoolLayout`` for tests that are not about layouts, where kernels
            take one layout of the pools alone.
        value_heads_multiple: What HV must be a multiple of, where kernels take no other number.
    """

    backend: str | None = None
    device: str | None = None
    xfails: Path | str | None = None
    tolerances: Mapping[str, float] = {}
    try_undeclared: bool = True
    pool_layout: Mapping[str, Any] = {}
    value_heads_multiple: int = 1

    @pytest.fixture(autouse=True)
    def subject(self, request: pytest.FixtureRequest) -> Iterator[Subject]:
        """The backend, chosen for every call of the test; skips or expects failures as declared."""
        option = request.config.getoption
        name = self.backend or option("--gdn-backend")
        if name is None:
            pytest.skip("no backend to test: set `backend` or pass --gdn-backend NAME")
        found = find_subject(name, self.device or option("--gdn-device"), self.tolerances)
        if found is None:
            refuse = pytest.fail if option("--gdn-require") else pytest.skip
            refuse(f"{name}: {why_not_here(name)}")
        found = replace(
            found, pool_layout=self.pool_layout, value_heads_multiple=self.value_heads_multiple
        )

        _share_cores(request.config)
        node = request.node
        features, undeclared = _expectations(node, found)
        exclusion = matching(read_exclusions(self.xfails or option("--gdn-xfails")), node.name)
        if exclusion is not None:
            why = f"{exclusion.reason} ({exclusion.link})"
            node.add_marker(pytest.mark.xfail(reason=why, strict=True))
        elif undeclared and self.try_undeclared:
            node.add_marker(pytest.mark.xfail(reason="; ".join(undeclared), strict=False))
        elif undeclared:
            pytest.skip("not declared: " + "; ".join(undeclared))
        facts = {
            "subject": {"backend": name, "device": _device_name(found.device),
                        "version": found.version, "torch": str(torch.__version__)},
            "features": sorted(feature.name for feature in features),
            "undeclared": list(undeclared),
        }  # fmt: skip
        node.user_properties.append(("gdn_dispatch", facts))
        with found.chosen(overstated=bool(undeclared)):
            yield found

    def test_exclusions_name_tests_of_the_kit(self, request: pytest.FixtureRequest) -> None:
        path = self.xfails or request.config.getoption("--gdn-xfails")
        outcomes: Any = request.config.pluginmanager.get_plugin("gdn-outcomes")
        tests = outcomes.tests[type(self)]
        known = tests | {name.partition("[")[0] for name in tests}
        unknown = [e.test for e in read_exclusions(path) if e.test not in known]
        assert not unknown, f"{path} excludes tests that do not exist: {unknown}"


def _expectations(node: Any, subject: Subject) -> tuple[set[Feature], tuple[str, ...]]:
    """Features a test needs, and every reason why the backend does not claim to pass it."""
    features = {feature for mark in node.iter_markers("gdn_needs") for feature in mark.args}
    params = node.callspec.params if hasattr(node, "callspec") else {}
    if params.get("form"):
        features.add(FORMS[params["form"]])
    if params.get("v_first"):
        features.add(Feature.STATE_V_FIRST)
    operations = [form for form, feature in FORMS.items() if feature in features]
    if _LAYER in features:
        operations.append("layer")
    dims = params.get("dims")
    dtypes = {
        name: str(params[name]).removeprefix("torch.")
        for name in ("dtype", "state_dtype")
        if isinstance(params.get(name), torch.dtype)
    }
    found = dims if isinstance(dims, Dims) else None
    reasons = [
        reason
        for operation in operations
        for reason in subject.not_declared(operation, found, features, **dtypes)
    ]
    return features, tuple(dict.fromkeys(reasons))


def _share_cores(config: pytest.Config) -> None:
    """Under pytest-xdist every worker gets its share; more threads than cores take minutes."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    share = max(1, (os.cpu_count() or 1) // workers)
    if torch.get_num_threads() > share:
        torch.set_num_threads(share)


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    properties = torch.get_device_module(device).get_device_properties(device)
    return str(getattr(properties, "name", device.type))
