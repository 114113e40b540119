"""Metadata equals what vllm-ascend's own functions make of the same lengths.

They are plain torch on the host, and are taken out of the installed files one by one, because
importing the package wants CANN. Its wheels are for aarch64; elsewhere they install beside nothing
else, as files:

    pip install --no-deps --only-binary :all: --platform manylinux_2_34_aarch64 \\
        --python-version 3.11 --target DIR vllm-ascend==0.26.0rc1      # and DIR on PYTHONPATH
"""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gdn_dispatch_ascend.meta import build_chunk_meta

from backends.ascend.tests import definitions
from gdn_dispatch import plan_batch
from gdn_dispatch.types import MetaRequest

CPU = torch.device("cpu")
VERSIONS = ("0.23.0", "0.26.0rc1")
SIX = (
    "chunk_indices_chunk64",
    "chunk_offsets_chunk64",
    "update_chunk_offsets_chunk64",
    "final_chunk_indices_chunk64",
    "chunk_indices_large_block",
    "block_indices_cumsum",
)


def definitions_of(path, wanted, names):
    """The functions, dataclasses and constants called ``wanted``, out of a file."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))

    def is_wanted(node):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            return node.name in wanted
        return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in wanted

    tree.body = [node for node in tree.body if is_wanted(node)]
    # postponed annotations come with this file's own __future__ import
    exec(compile(tree, str(path), "exec"), names)
    assert set(wanted) <= set(names)


@pytest.fixture(scope="module")
def theirs():
    try:
        installed = metadata.distribution("vllm-ascend")
    except metadata.PackageNotFoundError:
        pytest.skip("vllm-ascend is not installed")
    if installed.version not in VERSIONS:
        pytest.skip(f"vllm-ascend {installed.version} is installed, not {' or '.join(VERSIONS)}")
    from dataclasses import dataclass

    names = {
        "torch": torch, "dataclass": dataclass, "__name__": __name__,
        "triton": SimpleNamespace(cdiv=lambda a, b: (a + b - 1) // b),
    }  # fmt: skip
    definitions_of(
        installed.locate_file("vllm_ascend/ops/triton/fla/utils.py"),
        (
            "prepare_lens", "prepare_chunk_indices", "prepare_chunk_offsets",
            "prepare_update_chunk_offsets", "prepare_final_chunk_indices",
        ),
        names,
    )  # fmt: skip
    definitions_of(
        installed.locate_file("vllm_ascend/ops/gdn_attn_builder.py"),
        (
            "_GDN_CHUNK_SIZE", "_GDN_SOLVE_TRIL_LARGE_BLOCK_SIZE", "_GDN_CUMSUM_WORKING_SET",
            "GDNChunkedPrefillMetadata", "_compact_empty_segments", "_build_actual_seq_lengths",
            "_build_non_spec_chunked_prefill_metadata",
        ),
        names,
    )  # fmt: skip
    return SimpleNamespace(**names)


def builder(num_v_heads):
    """What their functions read of theirs."""
    config = SimpleNamespace(linear_num_value_heads=num_v_heads)
    return SimpleNamespace(
        vllm_config=SimpleNamespace(
            model_config=SimpleNamespace(hf_text_config=config),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
        )
    )


def test_every_field_of_a_prefill(theirs):
    for lengths, heads in definitions.batches(1000):
        if not lengths:
            continue
        starts = np.array(definitions.running(lengths), np.int32)
        request = MetaRequest(plan_batch(starts), CPU, num_v_heads=heads)
        meta, cu = build_chunk_meta(request), torch.from_numpy(starts)
        expected = theirs._build_non_spec_chunked_prefill_metadata(builder(heads), cu, CPU)
        for name in SIX:
            assert getattr(meta.tables, name).tolist() == getattr(expected, name).tolist(), name
        host = meta.rule_host_arguments
        assert host.cu_seqlens == expected.cu_seqlens_host
        assert host.chunk_indices_chunk64 == expected.chunk_indices_chunk64_host
        assert host.cu_seqlens_kern == expected.cu_seqlens_kern
        keep = expected.keep_meta
        assert host.keep == (None if keep is None else tuple(keep.tolist()))
        assert meta.tables.keep_meta.tolist() == [length > 0 for length in lengths]
        expected_lengths = theirs._build_actual_seq_lengths(cu, len(lengths))
        arguments = meta.arguments["prefill"]
        assert torch.equal(arguments.actual_seq_lengths, expected_lengths)
