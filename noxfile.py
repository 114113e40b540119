"""One environment for every leg: ``nox`` runs all, ``nox -s cuda`` one, ``nox -l`` lists them.

The accelerators' kernel stacks exclude each other, so no leg shares an environment with another.
Every version is that of ``constraints.txt``; words after ``--`` go to pytest, such as
``nox -s cuda -- --gdn-require`` on a machine that has the device.
"""

from __future__ import annotations

import json
from pathlib import Path

import nox

BACKENDS = ("cpu", "cuda", "ascend", "xpu")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

nox.options.envdir = ".venv-nox"
nox.options.default_venv_backend = "venv"
# a leg without its Python is skipped, and says so
nox.options.error_on_missing_interpreters = False


def install(session: nox.Session, *requirements: str) -> None:
    """Install with pinned versions; unpinned, torch would bring gigabytes of another build."""
    session.install("-c", "constraints.txt", *requirements)


def pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest in the leg's environment."""
    session.run("python", "-m", "pytest", *arguments, *session.posargs)


def brings_cuda(session: nox.Session) -> bool:
    """Whether the torch pip would take for this leg's Python depends on CUDA: several gigabytes."""
    report = Path(session.create_tmp()) / "torch.json"
    session.run(
        "python", "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed",
        "--report", str(report), "-c", "constraints.txt", "torch",
    )  # fmt: skip
    (found,) = json.loads(report.read_text(encoding="utf-8"))["install"]
    needed = found["metadata"].get("requires_dist", ())
    return any(name.startswith(("nvidia-", "cuda-")) for name in needed)


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """The core's own tests, on every Python there is a CPU build of torch for."""
    if brings_cuda(session):
        session.skip("pip finds no CPU build of torch for this Python: name an index that has one")
    install(session, "-e", ".[dev]")
    pytest(session, "-n", "2", "-m", "not packaging and not mutants", "--ignore", "tests/docs")


def backend(session: nox.Session) -> None:
    """A backend beside the core and nothing else: its conformance, and what its probe says."""
    name = session.name
    install(session, "-e", ".[testing]", "-e", f"backends/{name}", "hypothesis")
    session.run("gdn-dispatch", "doctor")
    # without the list of skipped tests: doctor has just said why
    pytest(session, "-rfE", f"backends/{name}/tests", "tests/packaging/test_probes.py")


for _name in BACKENDS:
    nox.session(backend, name=_name)


@nox.session
def cpu_sanitizers(session: nox.Session) -> None:
    """The native kernels under the address and the undefined-behaviour sanitizer, GCC's."""
    install(session, "-e", ".[testing]", "hypothesis", "pytest-xdist")
    build = "--config-settings=cmake.define.GDN_SANITIZE=ON"
    install(session, build, "--no-cache-dir", "backends/cpu")
    runtimes = [
        str(session.run("gcc", f"-print-file-name={name}", external=True, silent=True)).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python is not built with them, so they are loaded first; what it leaks at its end is not ours
    session.env["LD_PRELOAD"] = " ".join(runtimes)
    session.env["ASAN_OPTIONS"] = "detect_leaks=0"
    session.env["UBSAN_OPTIONS"] = "print_stacktrace=1"
    # without the sources on the path, where the package has no library
    pytest(session, "-n", "2", "-rfE", "-o", "pythonpath=.", "backends/cpu/tests")


@nox.session(python="3.11")
def vllm(session: nox.Session) -> None:
    """The CPU engine of vLLM, served through this package's native kernels, beside transformers."""
    session.install("-r", "tests/vllm/requirements.txt")  # vLLM pins a world of its own
    session.run("pip", "uninstall", "-y", "torchaudio", "torchcodec")  # builds for CUDA
    session.install("--no-deps", "-e", ".", "-e", "backends/cpu")
    pytest(session, "tests/vllm")


@nox.session
def triton(session: nox.Session) -> None:
    """The Triton kernels in Triton's interpreter, the conformance kit among it, and ptxas."""
    session.install("-r", "tests/triton/requirements.txt")
    session.install("--no-deps", "-e", ".", "-e", "backends/cuda")
    session.env["TRITON_INTERPRET"] = "1"
    pytest(session, "-n", "2", "tests/triton")
    session.env["TRITON_INTERPRET"] = "0"
    pytest(session, "-n", "2", "tests/triton_compile")


@nox.session(name="ascend-kernels", python="3.11")  # triton-ascend has wheels for no other
def ascend_kernels(session: nox.Session) -> None:
    """The Ascend kernels without an NPU: all that is lowered and planned, the kit interpreted."""
    session.install("-r", "tests/ascend/requirements.txt")
    session.install("--no-deps", "--require-hashes", "-r", "tests/ascend/bishengir.txt")
    session.install("--no-deps", "-e", ".", "-e", "backends/ascend")
    pytest(session, "-n", "2", "tests/ascend")
    session.env["TRITON_INTERPRET"] = "1"
    pytest(session, "-n", "2", "tests/ascend")


@nox.session
def xpu_wheel(session: nox.Session) -> None:
    """The XPU backend with Intel's own wheel, loaded with stub device libraries."""
    session.install("-r", "tests/xpu/requirements.txt")
    session.install("--no-deps", "-e", ".", "-e", "backends/xpu")
    session.env["TRITON_INTERPRET"] = "1"
    pytest(session, "-n", "2", "tests/xpu")


@nox.session
def packaging(session: nox.Session) -> None:
    """The wheels, built, installed into new environments and used."""
    install(session, "-e", ".[testing]", "hatchling", "scikit-build-core", "cmake", "ninja")
    pytest(session, "tests/packaging")


@nox.session
def docs(session: nox.Session) -> None:
    """Whatever the README shows and the examples do."""
    install(session, "-e", ".[transformers,testing]")
    session.run("python", "benchmarks/readme.py", "--check")
    pytest(session, "tests/docs", "tests/test_examples.py")
