"""The resolver, over every combination of what can be there and what can be asked for."""

import itertools
from dataclasses import replace

import pytest

from gdn_dispatch.capability import Capability, Feature
from gdn_dispatch.selection.resolver import (
    FROM_ARGUMENT,
    HOOK_OF_OP,
    OFFICIAL,
    Candidate,
    Choice,
    resolve,
)
from gdn_dispatch.testing.loopback import EVERYTHING, call, candidate, unavailable
from gdn_dispatch.types import ProviderInfo, Unavailable

ACCELERATORS = ("cuda", "npu", "xpu")
NOT_K96 = Capability(features=EVERYTHING.features, head_dims_k=(64, 128))

TORCH = candidate("torch", "cpu", priority=0, any_device_on_request=True)


def asked(name, provider=None):
    return Choice(name, provider, FROM_ARGUMENT)


def reasons(selection, name):
    return next((r.reasons for r in selection.rejections if r.backend == name), ())


def stage(selection, name):
    return next((r.stage for r in selection.rejections if r.backend == name), None)


@pytest.mark.parametrize(
    ("installed", "available", "requested", "device", "supported"),
    list(
        itertools.product(
            (True, False), (True, False), (True, False), ("xpu", "cuda", "cpu"), (True, False)
        )
    ),
)
def test_every_combination_of_one_backend_beside_torch(
    installed, available, requested, device, supported
):
    xpu = candidate("xpu", "xpu", capability=NOT_K96)
    if not available:
        xpu = replace(xpu, availability=Unavailable("no device"))
    facts = call(device_type=device, head_dim_k=128 if supported else 96)
    choice = asked("xpu") if requested else Choice()

    selection = resolve([TORCH, xpu] if installed else [TORCH], facts, choice)

    can = installed and available and supported and device == "xpu"
    if can:
        expected = "xpu"
    elif requested or device != "cpu":
        expected = None
    else:
        expected = "torch"
    assert selection.chosen == expected
    assert (selection.refusal == "") == (expected is not None)
    if requested and expected is None:
        assert selection.refusal == (
            "not installed" if not installed else "unavailable" if not available else "unsupported"
        )
    names = {rejection.backend for rejection in selection.rejections}
    assert names >= {"torch", "xpu"} - {selection.chosen} - ({"xpu"} if not installed else set())
    assert selection.chosen not in names
    assert all(rejection.reasons for rejection in selection.rejections)


@pytest.mark.parametrize("device", ACCELERATORS)
@pytest.mark.parametrize("op", HOOK_OF_OP)
def test_automatic_never_puts_torch_on_an_accelerator(op, device):
    selection = resolve([TORCH], call(op, device), Choice())
    assert selection.chosen is None
    assert 'pass backend="torch" to run it' in reasons(selection, "torch")[0]


@pytest.mark.parametrize("device", ["cpu", *ACCELERATORS])
def test_torch_runs_anywhere_on_request(device):
    assert resolve([TORCH], call(device_type=device), asked("torch")).chosen == "torch"


def test_torch_is_not_advertised_for_a_call_it_cannot_run():
    torch = replace(TORCH, info=replace(TORCH.info, capability=NOT_K96))
    selection = resolve([torch], call(device_type="xpu", head_dim_k=96), Choice())
    assert reasons(selection, "torch") == (
        "not chosen automatically on xpu",
        "K=96 (supports 64, 128)",
    )


def test_a_backend_bound_to_its_device_does_not_run_elsewhere_on_request():
    selection = resolve([candidate("xpu", "xpu")], call(device_type="cuda"), asked("xpu"))
    assert (selection.chosen, selection.refusal) == (None, "unsupported")
    assert reasons(selection, "xpu") == ("not for cuda tensors (serves xpu)",)


def test_every_reason_is_kept_across_stages():
    capability = Capability(features=EVERYTHING.features, dtypes=("bfloat16",), head_dims_k=(128,))
    xpu = candidate("xpu", "xpu", capability=capability)
    facts = call(device_type="cuda", dtype="float16", head_dim_k=96)
    selection = resolve([xpu], facts, Choice())
    assert stage(selection, "xpu") == "device"
    assert reasons(selection, "xpu") == (
        "not for cuda tensors (serves xpu)",
        "dtype float16 (supports bfloat16)",
        "K=96 (supports 128)",
    )


@pytest.mark.parametrize("op", HOOK_OF_OP)
def test_a_backend_needs_the_hook_of_the_operation(op):
    bare = replace(candidate("cpu"), hooks=frozenset())
    selection = resolve([bare], call(op), Choice())
    if op == "build_chunk_meta":
        assert selection.chosen == "cpu"
    else:
        assert reasons(selection, "cpu") == (f"does not implement {op}",)


def test_a_missing_feature_and_a_missing_hook_are_one_reason():
    bare = replace(candidate("cpu", capability=Capability()), hooks=frozenset())
    assert len(reasons(resolve([bare], call(), Choice()), "cpu")) == 1


def test_a_feature_of_the_call_is_needed():
    plain = candidate("cpu", capability=Capability(features=frozenset({Feature.GDN_ATTENTION})))
    facts = call(features=frozenset({Feature.CHECKPOINTS}))
    assert reasons(resolve([plain], facts, Choice()), "cpu") == (
        "does not implement state checkpoints",
    )


def test_the_highest_priority_wins_and_the_loser_is_told_why():
    fast, slow = candidate("fast", "cpu", priority=60), candidate("slow", "cpu", priority=10)
    selection = resolve([slow, fast], call(), Choice())
    assert selection.chosen == "fast"
    assert selection.why == "highest priority (60) of 2 that can run this call on cpu tensors"
    assert reasons(selection, "slow") == ("could run this call; fast has priority 60, not 10",)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_tie_goes_to_the_first_name_whatever_the_order(order):
    selection = resolve([candidate(name) for name in order], call(), Choice())
    assert selection.chosen == "a"
    assert selection.why == "priority 50, like b; its name sorts first"


def test_a_better_backend_that_cannot_run_the_call_does_not_win():
    best = candidate("best", priority=90, capability=NOT_K96)
    selection = resolve([best, candidate("other")], call(head_dim_k=96), Choice())
    assert selection.chosen == "other"
    assert stage(selection, "best") == "capability"


def test_an_explicit_choice_beats_priority():
    selection = resolve([TORCH, candidate("cpu")], call(), asked("torch"))
    assert (selection.chosen, selection.why) == ("torch", "asked for by backend argument")
    assert reasons(selection, "cpu") == ("could run this call, but torch was asked for",)


@pytest.mark.parametrize(
    ("broken", "refusal", "reason"),
    [
        (unavailable("cpu", reason="no AVX2"), "unavailable", "unavailable: no AVX2"),
        (
            Candidate("cpu", None, None, failure="ImportError: x"),
            "unavailable",
            "failed to load: ImportError: x",
        ),
        (
            Candidate("cpu", None, None, disabled=True),
            "unavailable",
            "disabled by GDN_DISPATCH_DISABLE",
        ),
    ],
)
def test_an_explicit_choice_never_falls_back(broken, refusal, reason):
    selection = resolve([TORCH, broken], call(), asked("cpu"))
    assert (selection.chosen, selection.refusal) == (None, refusal)
    assert reasons(selection, "cpu") == (reason,)
    assert stage(selection, "torch") == "choice"
    assert resolve([TORCH, broken], call(), Choice()).chosen == "torch"


@pytest.mark.parametrize(("name", "device"), OFFICIAL.items())
def test_a_missing_official_backend_is_named_on_its_device_only(name, device):
    hint = f"not installed: pip install 'gdn-dispatch[{name}]'"
    for other in ("cpu", *ACCELERATORS):
        selection = resolve([TORCH], call(device_type=other), Choice())
        assert (hint in reasons(selection, name)) == (other == device)


def test_an_unknown_name_is_not_installed():
    selection = resolve([TORCH], call(), asked("cdua"))
    assert (selection.chosen, selection.refusal) == (None, "not installed")


CUDA = candidate(
    "cuda",
    "cuda",
    providers=(
        ProviderInfo("triton", EVERYTHING),
        ProviderInfo("flashinfer", NOT_K96),
        ProviderInfo("cutile", EVERYTHING, unavailable="needs cuda-tile"),
    ),
)


@pytest.mark.parametrize(
    ("provider", "refusal", "reason"),
    [
        ("triton", "", None),
        ("flashinfer", "unsupported", "K=96 (supports 64, 128)"),
        ("cutile", "unavailable", "provider cutile unavailable: needs cuda-tile"),
        (
            "flashinfre",
            "no provider",
            "has no provider 'flashinfre' (has triton, flashinfer, cutile)",
        ),
    ],
)
def test_a_provider_is_checked_by_its_own_capability(provider, refusal, reason):
    facts = call(device_type="cuda", head_dim_k=96)
    selection = resolve([CUDA], facts, asked("cuda", provider))
    assert selection.refusal == refusal
    assert selection.provider == (None if refusal else provider)
    assert reasons(selection, "cuda") == (() if reason is None else (reason,))


def test_without_a_named_provider_none_is_checked():
    assert resolve([CUDA], call(device_type="cuda", head_dim_k=96), Choice()).chosen == "cuda"


def test_nothing_installed_is_an_answer():
    selection = resolve([], call(device_type="meta"), Choice())
    assert (selection.chosen, selection.refusal) == (None, "unsupported")
    assert selection.why == "no backend can run this call on meta tensors"
