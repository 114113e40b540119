"""``gdn-dispatch doctor``: what is here, what runs, and whether its numbers are right.

Made for machines where something is wrong: every part is asked for on its own, and one that fails
becomes a line of the report.
"""

from __future__ import annotations

import json
import platform
import time
import traceback
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pluggy
import torch

from gdn_dispatch import __version__, api
from gdn_dispatch.cli.explain import selection_record
from gdn_dispatch.config import BACKEND_VARIABLE, DISABLE_VARIABLE
from gdn_dispatch.errors import GDNDispatchError
from gdn_dispatch.plugins.inspection import in_one_line
from gdn_dispatch.plugins.registry import FailedPlugin
from gdn_dispatch.selection.dispatch import active_config, active_registry, explain
from gdn_dispatch.selection.report import backends_text, configuration_text
from gdn_dispatch.selection.resolver import OFFICIAL
from gdn_dispatch.torch_backend.reference import reference_gdn_layer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from gdn_dispatch.plugins.registry import BackendStatus
    from gdn_dispatch.selection.resolver import Selection

__all__ = ["Smoke", "add_arguments", "conflicts", "environment", "run", "smoke_run"]

USABLE: Final = 0
NONE_USABLE: Final = 1
REQUESTED_UNUSABLE: Final = 2

_STARTS: Final = (0, 0, 70, 134)
"""An empty sequence, one that ends inside a chunk, one of exactly 64 tokens."""

_LIMIT: Final = 2e-2
"""Largest error, as a share of the largest value; rounding to bf16 alone costs a tenth of it."""


@dataclass(frozen=True, slots=True)
class Smoke:
    """One small ``gdn_attention`` call held against the fp64 recurrence.

    ``error`` is None where the call did not come back; ``failure`` then says why.
    """

    backend: str
    device: str
    error: float | None = None
    seconds: float = 0.0
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether the numbers are right."""
        return self.error is not None and self.error <= _LIMIT

    def __str__(self) -> str:
        if self.error is None:
            return f"failed: {self.failure}"
        starts = ",".join(map(str, _STARTS))
        comparison = f"max error {self.error:.1e} (limit {_LIMIT:g}) in {self.seconds:.2f} s"
        return f"[{starts}] bf16: {comparison}" + ("" if self.passed else "  WRONG NUMBERS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--backend``."""
    parser.add_argument("--backend", metavar="NAME", help="the backend that has to be usable")
    parser.add_argument("--json", action="store_true", help="for programs, and for bug reports")


def run(args: argparse.Namespace) -> int:
    """0: usable. 1: no backend is. 2: the one that was asked for is not."""
    config, registry = active_config(), active_registry()
    statuses = registry.status()
    found, providers = conflicts()
    device = _device_type(args.backend or config.backend, statuses)
    selection, refusal = _selection(device, args.backend)
    smoke = None
    if selection is not None and selection.chosen is not None:
        smoke = smoke_run(selection.chosen, device, args.backend)
    code, conclusion = _conclusion(args.backend, device, selection, refusal, smoke)

    if args.json:
        report = {
            "version": __version__,
            "environment": environment(),
            "configuration": {
                BACKEND_VARIABLE: config.backend,
                DISABLE_VARIABLE: sorted(config.disable),
                "errors": [str(error) for error in config.errors],
            },
            "backends": [_status_record(status) for status in statuses],
            "conflicts": found,
            "triton_from": providers,
            "selection": selection_record(selection) if selection else None,
            "smoke": smoke and asdict(smoke) | {"limit": _LIMIT, "passed": smoke.passed},
            "conclusion": conclusion,
            "exit_code": code,
        }
        print(json.dumps(report, indent=2))
        return code

    here = environment()
    versions = [f"{name} {here[name]}" for name in ("python", "torch", "numpy", "pluggy")]
    print("   ".join([f"gdn-dispatch {__version__}", *versions]))
    print(f"{here['platform']}, CPU capability {here['cpu_capability']}\n")
    print(backends_text([_marked(status, selection) for status in statuses]))
    print("".join(f"{line}\n" for line in _causes()), end="")
    print(f"\nenvironment  {configuration_text(config)}")
    quiet = f"none (triton from: {', '.join(providers)})" if providers else "none"
    print("\n".join(f"conflicts    {line}" for line in found or [quiet]))
    print(f"smoke        {smoke or 'not run'}")
    print(conclusion)
    return code


def environment() -> dict[str, str]:
    """Versions and the machine, in words; also the header of a benchmark's results."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pluggy": pluggy.__version__,
        # without the kernel's release, which may carry a site's own name
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "accelerator": _accelerator() or "none",
    }


def conflicts() -> tuple[list[str], list[str]]:
    """What cannot live in one environment; and the distributions that provide ``triton``."""
    found = []
    try:
        providers = sorted(set(metadata.packages_distributions().get("triton", ())))
    except Exception as error:  # noqa: BLE001 - another project's metadata may be unreadable
        providers = []
        found.append(f"installed packages cannot be listed: {in_one_line(error)}")
    if len(providers) > 1:
        found.append(
            f"{' and '.join(providers)} all install the package triton and overwrite each other; "
            "keep one"
        )
    registry = active_registry()
    installed = [name for name in OFFICIAL if name in registry.names and name != "cpu"]
    if len(installed) > 1:
        found.append(
            f"backends for several accelerators are installed ({', '.join(sorted(installed))}); "
            "their kernel stacks exclude each other: one accelerator per environment"
        )
    rivals = [*registry.plugins.values(), *registry.conflicts]
    found += [f.reason for f in rivals if isinstance(f, FailedPlugin) and f.stage == "duplicate"]
    return found, providers


def smoke_run(name: str, device: str, backend: str | None = None) -> Smoke:
    """Run a small batch with ``backend``, and compare output and states with the reference."""
    seconds: list[float] = []
    try:
        error = _smoke_error(device, backend, seconds)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # noqa: BLE001 - whatever a backend raises is a finding
        return Smoke(name, device, failure=in_one_line(failure))
    if error != error:
        return Smoke(name, device, failure="NaN in the output or in a state")
    return Smoke(name, device, error, seconds[0])


def _smoke_error(device: str, backend: str | None, seconds: list[float]) -> float:
    H, HV, K, V, W = 2, 4, 128, 128, 4
    T, D = _STARTS[-1], 2 * H * K + HV * V
    slots = (3, 0, 1)  # of five, out of order: the other two must stay as they are
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    x, a, b, weight = normal(T, D), normal(T, HV), normal(T, HV), normal(D, W)
    A_log, dt_bias = normal(2, HV, dtype=torch.float32)
    conv, state = normal(5, D, W - 1), normal(5, HV, K, V, dtype=torch.float32)

    pools = conv.to(device, copy=True), state.to(device, copy=True)
    meta = api.build_chunk_meta(
        api.plan_batch(_STARTS, state_indices=slots), device, num_v_heads=HV, backend=backend
    )
    begin = time.perf_counter()
    with torch.no_grad():
        out = api.gdn_attention(
            x.to(device), a.to(device), b.to(device), meta=meta,
            conv_state=pools[0], ssm_state=pools[1], conv_weight=weight.to(device),
            A_log=A_log.to(device), dt_bias=dt_bias.to(device), backend=backend,
        ).cpu()  # fmt: skip
    seconds.append(time.perf_counter() - begin)

    expected = torch.zeros(T, HV, V).double(), conv.double(), state.double()
    for slot, start, end in zip(slots, _STARTS, _STARTS[1:], strict=False):
        rows = slice(start, end)
        if start < end:
            expected[0][rows], expected[1][slot], expected[2][slot] = reference_gdn_layer(
                x[rows], a[rows], b[rows], conv_weight=weight, conv_bias=None, A_log=A_log,
                dt_bias=dt_bias, num_heads=H, head_dim_k=K, head_dim_v=V,
                conv_history=conv[slot], initial_state=state[slot],
            )  # fmt: skip
    results = zip((out, *(pool.cpu() for pool in pools)), expected, strict=True)
    errors = [(got - right).abs().max() / right.abs().max() for got, right in results]
    return float(torch.stack(errors).max())


def _accelerator() -> str | None:
    """``torch.device.type`` of this machine's accelerator; asks torch, names no vendor."""
    try:
        found = torch.accelerator.current_accelerator()
        return found.type if found is not None and torch.accelerator.is_available() else None
    except Exception:  # noqa: BLE001 - a driver that is half there must not end the report
        return None


def _device_type(wanted: str | None, statuses: tuple[BackendStatus, ...]) -> str:
    """The device type to report on: the accelerator's, unless the backend asked for has none."""
    here = _accelerator() or "cpu"
    name = (wanted or "").partition("/")[0]
    info = next((status.info for status in statuses if status.name == name), None)
    served = info.device_types if info is not None else (OFFICIAL.get(name, here),)
    return here if here in served or not served else served[0]


def _selection(device: str, backend: str | None) -> tuple[Selection | None, str]:
    try:
        return explain("gdn_attention", device=device, backend=backend), ""
    except GDNDispatchError as error:  # the environment, or --backend, cannot be understood
        return None, str(error)


def _conclusion(
    backend: str | None, device: str, selection: Selection | None, refusal: str, smoke: Smoke | None
) -> tuple[int, str]:
    config = active_config()
    asked = backend or config.backend
    requested = asked is not None or any(BACKEND_VARIABLE in str(e) for e in config.errors)
    bad = REQUESTED_UNUSABLE if requested else NONE_USABLE
    if selection is None:
        return bad, f"FAILED: {refusal.splitlines()[0]}"
    if selection.chosen is None:
        own = [r for r in selection.rejections if r.backend == selection.choice.name]
        reasons = [reason for rejection in own for reason in rejection.reasons]
        return bad, "FAILED: " + "; ".join([selection.why, *reasons])
    if smoke is None or not smoke.passed:
        return bad, f"FAILED: {selection.chosen} was chosen, but the smoke run did not pass"
    chosen = selection.chosen + (f"/{selection.provider}" if selection.provider else "")
    return USABLE, f"OK: {chosen} will run gdn_attention on {device} tensors"


def _marked(status: BackendStatus, selection: Selection | None) -> BackendStatus:
    if selection is None or status.name != selection.chosen or status.info is None:
        return status
    return replace(status, status="selected", why=f"{status.why}; {selection.why}")


def _causes() -> Iterator[str]:
    """Where an exception of a plugin was raised, and what it was caused by."""
    for name, plugin in sorted(active_registry().plugins.items()):
        yield from (f"{name}: {line}" for line in _trail(plugin.exception))


def _trail(error: BaseException | None) -> Iterator[str]:
    frames = traceback.extract_tb(error.__traceback__ if error is not None else None)
    # the frames above the plugin are this package's and the import system's
    if frames and "importlib" not in frames[-1].filename:
        yield f"raised at {frames[-1].filename}:{frames[-1].lineno}"
    cause = error.__cause__ if error is not None else None
    while cause is not None:
        yield f"caused by {in_one_line(cause)}"
        cause = cause.__cause__


def _status_record(status: BackendStatus) -> dict[str, Any]:
    plugin = active_registry().plugins.get(status.name)
    return {
        "name": status.name,
        "version": status.version,
        "status": status.status,
        "why": status.why,
        "distribution": status.distribution,
        "device_types": list(status.info.device_types) if status.info else [],
        "causes": list(_trail(plugin.exception)) if plugin else [],
    }
