"""The two environment variables are parsed strictly, and never raise while being read."""

import ast
from pathlib import Path

import pytest

import gdn_dispatch.config
from gdn_dispatch.config import INTEGRATIONS, Config, read, split_backend
from gdn_dispatch.errors import ConfigurationError


@pytest.mark.parametrize(
    ("value", "backend"),
    [
        (None, None),
        ("", None),
        ("   ", None),
        ("cuda", "cuda"),
        (" cuda ", "cuda"),
        ("cuda/triton", "cuda/triton"),
        ("_private2", "_private2"),
    ],
)
def test_backend_variable_names_one_backend_or_is_unset(value, backend):
    environ = {} if value is None else {"GDN_DISPATCH_BACKEND": value}
    assert read(environ) == Config(backend=backend)


@pytest.mark.parametrize(
    "value", ["0", "1", "cuda,xpu", "cuda/", "/triton", "a/b/c", "gdn-cuda", "cuda xpu", "küda"]
)
def test_malformed_backend_variable_is_remembered_and_shows_the_value(value):
    config = read({"GDN_DISPATCH_BACKEND": value})
    assert config.backend is None
    (error,) = config.errors
    assert isinstance(error, ConfigurationError)
    assert repr(value) in str(error)
    assert "GDN_DISPATCH_BACKEND" in str(error)


@pytest.mark.parametrize(
    ("value", "disable"),
    [
        (None, set()),
        ("", set()),
        ("cuda", {"cuda"}),
        ("cuda, xpu ,cuda", {"cuda", "xpu"}),
    ],
)
def test_disable_variable_lists_names(value, disable):
    environ = {} if value is None else {"GDN_DISPATCH_DISABLE": value}
    assert read(environ) == Config(disable=frozenset(disable))


@pytest.mark.parametrize("value", ["1", "cuda,", "cuda,,xpu", "cuda;xpu", "cuda/triton", "-x"])
def test_malformed_disable_variable_is_remembered(value):
    (error,) = read({"GDN_DISPATCH_DISABLE": value}).errors
    assert repr(value) in str(error)


def test_names_beside_a_malformed_one_are_disabled_all_the_same():
    config = read({"GDN_DISPATCH_DISABLE": "cuda,-xpu,ascend"})
    assert config.disable == {"cuda", "ascend"}
    assert len(config.errors) == 1


def test_both_variables_report_their_errors_together():
    config = read({"GDN_DISPATCH_BACKEND": "1", "GDN_DISPATCH_DISABLE": "0"})
    assert len(config.errors) == 2


def test_disable_separates_integrations_from_backends():
    config = read({"GDN_DISPATCH_DISABLE": "vllm,cuda,transformers"})
    assert config.disabled_backends == {"cuda"}
    assert config.disabled_integrations == {"vllm", "transformers"}
    assert config.disabled_integrations <= INTEGRATIONS


def test_names_are_taken_as_they_are_written():
    assert read({"GDN_DISPATCH_BACKEND": "CUDA"}).backend == "CUDA"


def test_splitting_a_backend_gives_its_provider():
    assert split_backend("cuda") == ("cuda", None)
    assert split_backend("cuda/triton") == ("cuda", "triton")
    with pytest.raises(ValueError, match="neither"):
        split_backend("cuda/")


def test_no_other_file_of_the_core_reads_the_environment():
    package = Path(gdn_dispatch.config.__file__).parent
    readers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}
    }
    assert readers == {"config.py"}
