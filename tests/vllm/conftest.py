"""Engines run in processes of their own, one at a time.

Everything an engine is asked for is a job (``engine.py``); equal jobs are run once.
"""

import contextlib
import functools
import http.client
import importlib.util
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOUND = importlib.util.find_spec("vllm") is not None
if FOUND:  # for the tests that import vLLM themselves
    os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
    runpy.run_path(str(HERE / "stubs" / "sitecustomize.py"))


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="vLLM is not installed; docs/vllm.md says how")
    quiet = pytest.mark.filterwarnings("ignore")  # vLLM's and transformers' own warnings
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(quiet)
            if not FOUND:
                item.add_marker(skip)


def environment(**more):
    paths = [str(HERE / "stubs"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


class Runner:
    """Runs jobs and remembers what came out."""

    def __init__(self, directory):
        self.directory = directory
        self.run = functools.lru_cache(None)(self._run)

    def __call__(self, job, **env):
        return self.run(json.dumps(job, sort_keys=True), tuple(sorted(env.items())))

    def _run(self, job, env):
        number = sum(1 for _ in self.directory.glob("job-*.json"))
        paths = [self.directory / f"{kind}-{number}.json" for kind in ("job", "result")]
        log = self.directory / f"engine-{number}.log"
        paths[0].write_text(job)
        begun = time.monotonic()
        with log.open("w") as sink:
            done = subprocess.run(
                [sys.executable, str(HERE / "engine.py"), *map(str, paths)],
                env=environment(VLLM_CACHE_ROOT=str(self.directory / "cache"), **dict(env)),
                stdout=sink,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=540,
            )
        text = log.read_text()
        assert done.returncode == 0, f"{job[:2000]}\n{text[-6000:]}"
        result = json.loads(paths[1].read_text())
        return result | {"log": text, "seconds": time.monotonic() - begun}


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
    """``run_script(name, job)``: another script of this directory, its result."""
    directory = tmp_path_factory.mktemp("scripts")

    def run(name, job):
        number = sum(1 for _ in directory.glob("job-*"))
        files = [directory / f"{kind}-{number}.json" for kind in ("job", "result")]
        files[0].write_text(json.dumps(job))
        command = [sys.executable, str(HERE / name), *map(str, files)]
        done = subprocess.run(
            command, env=environment(), check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return json.loads(files[1].read_text())

    return run


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    return Runner(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """``server(model, *options)``: starts ``vllm serve``; host and port once it answers."""
    directory = tmp_path_factory.mktemp("servers")
    running = []

    def start(path, *options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            host, port = probe.getsockname()
        log = directory / f"server-{len(running)}.log"
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path,
            "--host", host, "--port", str(port), "--dtype", "float32", "--enforce-eager",
            "--skip-tokenizer-init", *options,
        ]  # fmt: skip
        with log.open("w") as sink:
            process = subprocess.Popen(
                command,
                env=environment(VLLM_CACHE_ROOT=str(directory / "cache")),
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running.append(process)
        deadline = time.monotonic() + 420
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection(host, port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    assert "gdn_dispatch serves the Gated DeltaNet layers" in log.read_text()
                    return host, port
            time.sleep(1)
        raise AssertionError(log.read_text()[-6000:])

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope="session")
def model(tmp_path_factory, run_script):
    """``model(name, **options)``: the directory of a model of ``models.py``."""
    root = tmp_path_factory.mktemp("models")

    @functools.lru_cache(None)
    def write(name, **options):
        words = "-".join([name, *(f"{key}{value}" for key, value in sorted(options.items()))])
        job = {"name": name, "to": str(root / words), "options": options}
        return run_script("models.py", job)["path"]

    return write


@pytest.fixture(scope="session")
def prompts():
    """Twenty-two prompts of 1 to 400 tokens."""
    rng = random.Random(5)
    lengths = [1, 2, 3, 4, 31, 32, 33, 63, 64, 65, 127, 128, 129, 400]
    lengths += [rng.randint(5, 300) for _ in range(8)]
    return [[rng.randrange(3, 512) for _ in range(length)] for length in lengths]
