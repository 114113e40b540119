"""The resolver over every machine, every wish and every device, against the rules said once more.

Every official backend is absent, unavailable or available, and torch is always there. The oracle
below is the specification as a table would have it; it shares no code with the resolver.
"""

import itertools

import pytest

from gdn_dispatch.selection.resolver import FROM_ARGUMENT, OFFICIAL, Choice, resolve
from gdn_dispatch.testing.loopback import EVERYTHING, call, candidate, unavailable
from gdn_dispatch.types import ProviderInfo

SERVES = {"cpu": "cpu", "cuda": "cuda", "ascend": "npu", "xpu": "xpu", "torch": "cpu"}
PRIORITY = {"cpu": 50, "cuda": 50, "ascend": 50, "xpu": 50, "torch": 0}
STATES = ("absent", "unavailable", "available")
DEVICES = ("cpu", "cuda", "npu", "xpu")
WISHES = (None, "cpu", "cuda", "ascend", "xpu", "torch", "unknown")
PROVIDERS = {"flashinfer": "", "cutile": "needs the cuda-tile package"}

MACHINES = [
    dict(zip(OFFICIAL, states, strict=True)) for states in itertools.product(STATES, repeat=4)
]


def candidates(machine):
    """The backends of a machine, as the resolver gets them."""
    found = [candidate("torch", "cpu", priority=0, any_device_on_request=True)]
    for name, state in machine.items():
        providers = [ProviderInfo(p, EVERYTHING, why) for p, why in PROVIDERS.items()]
        if state == "available":
            fields = {"providers": tuple(providers)} if name == "cuda" else {}
            found.append(candidate(name, SERVES[name], **fields))
        elif state == "unavailable":
            found.append(unavailable(name, SERVES[name], reason=f"no {SERVES[name]} here"))
    return found


def rules(machine, wish, device, provider=None):
    """Who runs the call, or why nobody does: ``(chosen, refusal)``."""
    states = {**machine, "torch": "available"}
    can = [n for n, state in states.items() if state == "available" and SERVES[n] == device]
    if wish is None:
        if not can:
            return None, "unsupported"
        return max(can, key=PRIORITY.get), ""
    state = states.get(wish, "absent")
    if state != "available":
        return None, {"absent": "not installed", "unavailable": "unavailable"}[state]
    if wish not in can and wish != "torch":
        return None, "unsupported"
    if provider is not None and provider not in PROVIDERS:
        return None, "no provider"
    return (None, "unavailable") if PROVIDERS.get(provider) else (wish, "")


def assert_complete(selection, machine, device):
    """Whoever does not run the call is turned down, once, with words; nobody else is."""
    present = {name for name, state in machine.items() if state != "absent"} | {"torch"}
    to_be_had = {name for name in machine if SERVES[name] == device} - present
    names = [rejection.backend for rejection in selection.rejections]
    assert names == sorted((present | to_be_had) - {selection.chosen})
    for rejection in selection.rejections:
        assert rejection.reasons
        assert all(isinstance(reason, str) and reason for reason in rejection.reasons)
        if rejection.backend in to_be_had:
            (reason,) = rejection.reasons
            assert f"pip install 'gdn-dispatch[{rejection.backend}]'" in reason
        elif machine.get(rejection.backend) == "unavailable":
            assert rejection.reasons == (f"unavailable: no {SERVES[rejection.backend]} here",)
    assert selection.why


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wish", WISHES)
def test_every_machine_follows_the_rules(wish, device):
    choice = Choice() if wish is None else Choice(wish, None, FROM_ARGUMENT)
    for machine in MACHINES:
        selection = resolve(candidates(machine), call(device_type=device), choice)
        assert (selection.chosen, selection.refusal) == rules(machine, wish, device), machine
        assert selection.provider is None
        assert_complete(selection, machine, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("provider", [*PROVIDERS, "cutlass"])
def test_a_provider_that_is_asked_for_follows_the_rules(provider, device):
    choice = Choice("cuda", provider, FROM_ARGUMENT)
    for machine in MACHINES:
        selection = resolve(candidates(machine), call(device_type=device), choice)
        expected = rules(machine, "cuda", device, provider)
        assert (selection.chosen, selection.refusal) == expected, machine
        assert selection.provider == (provider if selection.chosen else None)
        assert_complete(selection, machine, device)


def test_the_table_is_complete():
    assert len(MACHINES) * len(WISHES) * len(DEVICES) == 2268
    assert SERVES.items() >= OFFICIAL.items()


def test_the_rules_say_what_they_should():
    """The oracle itself, where it matters most."""
    nothing = dict.fromkeys(OFFICIAL, "absent")
    everything = dict.fromkeys(OFFICIAL, "available")
    assert rules(nothing, None, "cpu") == ("torch", "")
    assert rules(nothing, None, "cuda") == (None, "unsupported")
    assert rules(nothing, "torch", "cuda") == ("torch", "")
    assert rules(nothing, "cuda", "cpu") == (None, "not installed")
    assert rules(everything, None, "cpu") == ("cpu", "")
    assert rules(everything, "cuda", "cpu") == (None, "unsupported")
    assert rules(everything, "cuda", "cuda", "flashinfer") == ("cuda", "")
    assert rules(everything, "cuda", "cuda", "cutile") == (None, "unavailable")
