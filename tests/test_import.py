"""What importing the package does, in fresh processes."""

import subprocess
import sys

HEAVY = ["transformers", "triton", "matplotlib", "rich", "torch_npu", "intel_extension_for_pytorch"]


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**environment}
    )


def test_import_brings_in_no_vendor_package_and_no_optional_one():
    code = f"import sys, gdn_dispatch; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code).stdout.strip() == "[]"


def test_import_reads_nothing_but_the_two_variables():
    code = (
        "import os, torch\n"
        "seen = []\n"
        "class Spy(dict):\n"
        "    def get(self, key, default=None):\n"
        "        seen.append(key); return super().get(key, default)\n"
        "    def __getitem__(self, key):\n"
        "        seen.append(key); return super().__getitem__(key)\n"
        "os.environ = Spy(os.environ)\n"
        "import gdn_dispatch\n"
        "print(sorted({k for k in seen if 'GDN' in k}))"
    )
    assert run(code).stdout.strip() == "['GDN_DISPATCH_BACKEND', 'GDN_DISPATCH_DISABLE']"


def test_a_malformed_variable_does_not_break_the_import_but_the_first_call():
    code = (
        "import torch, gdn_dispatch as g\n"
        "x = torch.ones(1, 1, 1, 1)\n"
        "try:\n"
        "    g.chunk_gated_delta_rule(x, x, x, x[..., 0], x[..., 0])\n"
        "except g.ConfigurationError as error:\n"
        "    print(error)"
    )
    result = run(code, GDN_DISPATCH_BACKEND="no such name!")
    assert result.returncode == 0, result.stderr
    assert "GDN_DISPATCH_BACKEND" in result.stdout


def test_every_public_name_is_there_and_documented():
    import gdn_dispatch

    for name in gdn_dispatch.__all__:
        value = getattr(gdn_dispatch, name)
        assert name in ("HOOK_API_VERSION", "__version__") or value.__doc__, name
