"""The names for scripts: one place that imports from everywhere, and that nothing imports."""

import re
import subprocess
import sys
from pathlib import Path

from retro.base import provenance
from retro.tools import api

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8")


def modules() -> list[str]:
    paths = [path.relative_to(ROOT).with_suffix("") for path in sorted(provenance.ROOT.rglob("*.py"))]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


def test_no_module_of_the_package_imports_it():
    assert api.__name__ in modules()
    assert [name for name in modules() if name != api.__name__ and api.__name__ in provenance.closure(name)] == []


def test_every_name_is_there_once_and_documented():
    assert sorted(set(api.__all__)) == sorted(api.__all__)
    for name in api.__all__:
        assert getattr(api, name).__doc__ and f"`{name}`" in PAGE, name


def test_it_is_all_that_the_module_exports():
    brought = {name for name, value in vars(api).items() if not name.startswith("_") and hasattr(value, "__module__")}
    assert brought == set(api.__all__)


def test_importing_it_starts_nothing_and_loads_no_package_that_single_steps_need():
    script = (
        "import sys, threading; from retro.tools import api; assert threading.active_count() == 1; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {
        "transformers",
        "onnx",
        "onnxruntime",
        "matplotlib",
        "pandas",
        "pyarrow",
        "snakemake",
        "starlette",
        "bm25s",
    }
    assert "torch" in loaded and not loaded & heavy


def test_the_documented_example_runs(dataset, tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/open-book").symlink_to(dataset.folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example[1], "docs/python.md", "exec"), {})
    said = capsys.readouterr().out
    assert "'type': 'end'" in said and "read with live retrieval: [" in said
