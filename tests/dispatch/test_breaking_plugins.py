"""Every way a plugin can be broken, as its user meets it: installed, in a process of its own.

Whatever is wrong with one backend, ``import gdn_dispatch`` works, the others run, and ``doctor``
says in one line which backend it is and what is the matter with it.
"""

import json
from dataclasses import dataclass

import pytest

from tests.support.fake_packages import distribution, fresh_python

GOOD = """
from gdn_dispatch import Available, hookimpl
from gdn_dispatch.testing.loopback import info
from gdn_dispatch.torch_backend import plugin as torch_plugin

@hookimpl
def backend_info():
    return info("good", priority=-1)

@hookimpl
def probe():
    return Available("all is well")

@hookimpl
def gated_delta_rule(request):
    return torch_plugin.gated_delta_rule(request)
"""

# Each broken plugin is this one and a few lines more; what is defined last counts.
WORKING = """
from gdn_dispatch import Available, GDNOutput, hookimpl
from gdn_dispatch.testing.loopback import info

@hookimpl
def backend_info():
    return info("broken")

@hookimpl
def probe():
    return Available()

@hookimpl
def gated_delta_rule(request):
    return GDNOutput(request.v)

@hookimpl
def gdn_attention(request):
    return GDNOutput(request.out)
"""

# Runs in the process under test: the calls of a user, then doctor, as main() of the command.
SESSION = """
import contextlib, io, json
import gdn_dispatch
import torch
from gdn_dispatch.cli import main

def doctor(*words):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(["doctor", *words])
    return {"code": code, "out": printed.getvalue()}

def call(backend):
    x, gate = torch.ones(1, 3, 1, 4), torch.full((1, 3, 1), 0.5)
    meta = {"cu_seqlens_cpu": [0, 3]}
    try:
        output, _ = gdn_dispatch.chunk_gated_delta_rule(
            x, x, x, -gate, gate, **meta, backend=backend
        )
    except gdn_dispatch.GDNDispatchError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"output": output.tolist()}

print(json.dumps({
    "calls": {name: call(name) for name in ("torch", "good", "broken")},
    "doctor": doctor(),
    "json": doctor("--json"),
    "asked": doctor("--backend", "broken"),
}))
"""


@dataclass(frozen=True)
class Break:
    """A plugin, and what has to be said of it.

    ``status`` and ``cause`` are those of ``doctor``; ``error`` is what a call of it raises;
    ``code`` is the exit code of ``doctor`` where nobody asks for a backend.
    """

    source: str
    cause: str
    status: str = "failed"
    error: str = "BackendUnavailableError"
    code: int = 0


HOOK = "\n@hookimpl\n"
BREAKS = {
    "import error": Break(
        "from torch import no_such_name",
        "ImportError: cannot import name 'no_such_name' from 'torch'",
    ),
    "missing SDK": Break(
        f"import no_such_sdk\n{WORKING}",
        "ModuleNotFoundError: No module named 'no_such_sdk' (gdn-broken 1.0)",
    ),
    "missing SDK, looked for by probe": Break(
        f"{WORKING}{HOOK}def probe():\n    import no_such_sdk",
        "probe() raised ModuleNotFoundError: No module named 'no_such_sdk'",
        status="unavailable",
    ),
    "entry point that exits": Break(
        "import sys\nsys.exit('no licence')", "SystemExit: no licence (gdn-broken 1.0)"
    ),
    "entry point that exits without a word": Break(
        "import sys\nsys.exit()", "SystemExit (gdn-broken 1.0)"
    ),
    "another hook API": Break(
        f"{WORKING}{HOOK}def backend_info():\n    return info('broken', hook_api=99)",
        "written for hook API 99, this gdn-dispatch speaks 1: pip install -U gdn-dispatch",
    ),
    "misspelt hook": Break(
        f"{WORKING}{HOOK}def gdn_atention(request):\n    pass",
        "unknown hook gdn_atention: did you mean gdn_attention?",
    ),
    "hook with a default": Break(
        f"{WORKING}{HOOK}def gdn_attention(request=None):\n    pass",
        "gdn_attention gives 'request' a default: pluggy never passes such a parameter",
    ),
    "backend_info raises": Break(
        f"{WORKING}{HOOK}def backend_info():\n    raise ValueError('no config\\nat all')",
        "backend_info() raised ValueError: no config (gdn-broken 1.0)",
    ),
    "backend_info returns a dict": Break(
        f"{WORKING}{HOOK}def backend_info():\n    return {{'name': 'broken'}}",
        "backend_info() returned dict, expected BackendInfo (gdn-broken 1.0)",
    ),
    "probe raises": Break(
        f"{WORKING}{HOOK}def probe():\n    raise OSError('the driver is asleep\\nwake it')",
        "probe() raised OSError: the driver is asleep",
        status="unavailable",
    ),
    "probe answers at length": Break(
        f"from gdn_dispatch import Unavailable\n{WORKING}{HOOK}def probe():\n"
        "    return Unavailable('no device\\n  is the driver loaded?\\n')",
        "no device; is the driver loaded?",
        status="unavailable",
    ),
    "probe hangs": Break(
        f"import time\n{WORKING}{HOOK}def probe():\n    time.sleep(3600)",
        "probe() did not answer within 5 s",
        status="unavailable",
    ),
    # nothing can be seen of these before they are called
    "hooks that return no GDNOutput": Break(
        f"{WORKING}{HOOK}def gated_delta_rule(request):\n    return None\n"
        f"{HOOK}def gdn_attention(request):\n    return request.out",
        "gdn_attention of backend 'broken' returned Tensor, a GDNOutput is required",
        status="available",
        error="BackendContractError",
        code=1,
    ),
    "metadata that is none": Break(
        f"{WORKING}{HOOK}def build_chunk_meta(request):\n    return None",
        "build_chunk_meta of backend 'broken' returned NoneType, a ChunkMeta is required",
        status="available",
        error="BackendContractError",
        code=1,
    ),
}


def session(folder, source, publishers=("gdn-broken",)):
    """What happens to a user who has a good plugin and this one."""
    for name, code in (("good", GOOD), ("broken", source)):
        (folder / f"fake_{name}.py").write_text(code)
    distribution(folder, "gdn-good", "good", "fake_good")
    for publisher in publishers:
        distribution(folder, publisher, "broken", "fake_broken")
    # one thread: a smoke run is small, and its time is most of this test's
    return json.loads(fresh_python(folder, SESSION, OMP_NUM_THREADS="1"))


def assert_only_one_is_broken(seen, expected):
    calls = seen["calls"]
    assert calls["good"]["output"] == calls["torch"]["output"]
    assert calls["broken"]["error"] == expected.error

    rows = {row["name"]: row for row in json.loads(seen["json"]["out"])["backends"]}
    assert rows["broken"]["status"] == expected.status
    assert rows["good"]["why"] == "all is well"
    assert rows["torch"]["status"] == "available"
    assert json.loads(seen["json"]["out"])["exit_code"] == seen["json"]["code"] == expected.code
    assert seen["doctor"]["code"] == expected.code
    assert seen["asked"]["code"] == 2


def lines_about(text, cause):
    return [line for line in text.splitlines() if "broken" in line and cause in line]


@pytest.mark.parametrize("name", [n for n, b in BREAKS.items() if b.status != "available"])
def test_a_plugin_that_cannot_be_used(tmp_path, name):
    expected = BREAKS[name]
    seen = session(tmp_path, expected.source)

    assert_only_one_is_broken(seen, expected)
    assert lines_about(seen["doctor"]["out"], expected.cause)
    assert lines_about(seen["asked"]["out"].splitlines()[-1], expected.cause)
    assert expected.cause in seen["calls"]["broken"]["text"]
    (row,) = [r for r in json.loads(seen["json"]["out"])["backends"] if r["name"] == "broken"]
    assert expected.cause in row["why"]
    assert "\n" not in row["why"]


@pytest.mark.parametrize("name", [n for n, b in BREAKS.items() if b.status == "available"])
def test_a_plugin_that_breaks_when_it_is_called(tmp_path, name):
    expected = BREAKS[name]
    seen = session(tmp_path, expected.source)

    assert_only_one_is_broken(seen, expected)
    for report in (seen["doctor"], seen["asked"]):
        assert lines_about(report["out"], expected.cause)
        assert report["out"].splitlines()[-1] == (
            "FAILED: broken was chosen, but the smoke run did not pass"
        )
    smoke = json.loads(seen["json"]["out"])["smoke"]
    assert smoke["backend"] == "broken"
    assert expected.cause in smoke["failure"]
    assert "of backend 'broken' returned NoneType" in seen["calls"]["broken"]["text"]


def test_two_plugins_of_one_name(tmp_path):
    cause = "published twice, by gdn-one 1.0 and gdn-two 1.0: uninstall all but one"
    seen = session(tmp_path, WORKING, publishers=("gdn-two", "gdn-one"))

    assert_only_one_is_broken(seen, Break(WORKING, cause))
    assert lines_about(seen["doctor"]["out"], cause)
    assert f"conflicts    {cause}" in seen["doctor"]["out"].splitlines()
    assert cause in json.loads(seen["json"]["out"])["conflicts"]
    assert cause in seen["calls"]["broken"]["text"]
