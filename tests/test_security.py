"""What SECURITY.md promises about the code itself, and about names in what comes from elsewhere."""

import ast
import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path for name in ("mmsr_pt", "pretrain", "finetune", "shards", "benchmarks") for path in (ROOT / name).rglob("*.py")
)
FORBIDDEN = {"pickle.load", "pickle.loads", "pickle.Unpickler", "os.system", "os.popen", "eval", "exec", "__import__"}
UNPACKERS = {"extract", "extractall", "unpack_archive"}


def dangers(source: str) -> list[str]:
    """Calls that could run what they read, or unpack it to where it wants."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            name in FORBIDDEN
            or name.rpartition(".")[2] in UNPACKERS
            or (name.startswith("torch.") and name.endswith(".load") and given.get("weights_only") != "True")
            or given.get("shell", "False") != "False"
            or given.get("trust_remote_code", "False") != "False"
            or given.get("allow_pickle", "False") != "False"
        ):
            found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_run_or_unpack_itself(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    # an expression of polars, not of Python
    assert [danger for danger in dangers(source) if not danger.endswith(".eval")] == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "eval(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "np.load(path, allow_pickle=True)",
        "archive.extractall(out)",
        "shutil.unpack_archive(path, out)",
    ],
)
def test_the_look_at_the_code_finds_what_it_is_for(line: str) -> None:
    assert len(dangers(line)) == 1


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/passwd", "train/../../outside.tar"])
def test_a_domain_reads_no_file_outside_of_itself(small_domain: Domain, tmp_path: Path, name: str) -> None:
    domain = tmp_path / "domain"
    shutil.copytree(small_domain.path, domain)
    tar = domain / small_domain.meta["tars"][0]["path"]
    shutil.copyfile(tar, tmp_path / "outside.tar")
    meta = json.loads((domain / "domain.json").read_text())
    meta["tars"][0]["path"] = name
    (domain / "domain.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="outside of it"):
        Domain.load(domain)
    (domain / "domain.json").write_text(json.dumps(small_domain.meta))
    items = pl.read_parquet(domain / "items.parquet")
    items.with_columns(tar=pl.when(pl.col("tar").is_not_null()).then(pl.lit(name))).write_parquet(
        domain / "items.parquet"
    )
    with pytest.raises(UserError, match="outside of it"):
        Domain.load(domain)


def test_every_dependency_has_a_lower_bound() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    assert [one for one in named if ">=" not in one and not one.startswith("mmsr_pt[")] == []
