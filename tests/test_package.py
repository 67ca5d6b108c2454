"""environment.yml, pyproject.toml, requirements.lock and what is installed say the same."""
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"matplotlib": "matplotlib-base"}           # what conda-forge calls it


def declared() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def environment() -> dict: return yaml.safe_load((ROOT / "environment.yml").read_text())


def locked(name: str = "requirements.lock") -> dict:
    lines = (ROOT / name).read_text().splitlines()
    return {_key(name): version for name, version in (line.split("==") for line in lines if "==" in line)}


def _key(name: str) -> str: return re.sub(r"[-_.]+", "-", name).lower()


def disagreements(project: dict, env: dict, lock: dict, installed) -> list[str]:
    "Each entry that is not the same everywhere, by name"
    found = []
    if env["channels"] != ["conda-forge", "nodefaults"]: found.append(f"channels {env['channels']}")
    variables = env.get("variables")
    if variables != {"NO_ALBUMENTATIONS_UPDATE": "1"}: found.append(f"variables {variables}")
    if env["name"] != project["name"]: found.append(f"name {env['name']}")
    conda = [d for d in env["dependencies"] if isinstance(d, str)]
    pip = next(d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    if not any(line.startswith("-e .") for line in pip): found.append("pip section without the package")
    entries = [*conda, *(p for p in pip if p[0] != "-")]
    ranges = {_key(r.name): r.specifier for r in map(Requirement, entries)}
    if not str(ranges["python"]).find(project["requires-python"]) >= 0: found.append("python")
    for need in map(Requirement, project["dependencies"]):
        name = _key(CONDA_NAMES.get(need.name, need.name))
        if ranges.get(name) != need.specifier:
            found.append(f"{need.name}: {ranges.get(name)} is not {need.specifier}")
        for where, version in (("lock", lock.get(_key(need.name))), ("installed", installed(need.name))):
            if version is None or Version(version) not in need.specifier:
                found.append(f"{need.name}: {where} {version} is not in {need.specifier}")
    known = {_key(CONDA_NAMES.get(n, n)) for n in (Requirement(d).name for d in project["dependencies"])}
    return found + [f"{n}: only in environment.yml" for n in ranges.keys() - known - {"python", "pip"}]


def test_environment_package_lock_and_installation_agree():
    assert disagreements(declared(), environment(), locked(), metadata.version) == []


@pytest.mark.parametrize("spoil, named", [
    (lambda p, e, v: e["channels"].append("pytorch"), "channels"),
    (lambda p, e, v: e.update(variables={}), "variables"),
    (lambda p, e, v: e["dependencies"].remove("numpy>=2.0"), "numpy"),
    (lambda p, e, v: p["dependencies"].append("left-pad>=1"), "left-pad"),
    (lambda p, e, v: v.update(torch="2.9.0"), "torch"),
    (lambda p, e, v: e["dependencies"].append("click>=1"), "click")])
def test_each_disagreement_is_named(spoil, named):
    project, env, lock = declared(), environment(), locked()
    spoil(project, env, lock)
    installed = {**lock, "left-pad": "1.0"}
    found = disagreements(project, env, lock, lambda name: installed.get(_key(name)))
    assert found and all(line.startswith(named) for line in found), found


def test_never_depends_on_what_takes_albumentations_name():
    assert not {"albumentationsx"} & {Requirement(d).name.lower() for d in declared()["dependencies"]}
    assert "albumentationsx" not in locked()


def test_the_lock_has_a_version_in_range_for_every_extra():
    lock = locked()
    for extra, needs in declared()["optional-dependencies"].items():
        for need in map(Requirement, needs):
            assert Version(lock[_key(need.name)]) in need.specifier, f"{extra}: {need}"


def test_the_lock_for_a_cpu_is_the_other_without_cuda():
    lock, cpu = locked(), locked("requirements-cpu.lock")
    assert set(lock) - set(cpu) == {n for n in lock if re.match("nvidia-|cuda-|triton", n)} != set()
    assert {n for n, v in cpu.items() if v != lock[n]} == {"torch", "torchvision"}
    assert cpu["torch"] == lock["torch"] + "+cpu"


def test_condas_own_grammar_reads_every_entry_as_it_is_meant():
    rattler = pytest.importorskip("rattler", reason="py-rattler is not installed: pip install -e '.[test]'")
    entries = [d for d in environment()["dependencies"] if isinstance(d, str)]
    specs = [rattler.MatchSpec(e) for e in entries]
    assert [s.name.normalized for s in specs] == [_key(Requirement(e).name) for e in entries]
    for spec, entry in zip(specs, entries):
        for version in ("0.1", "3.9", "3.11.4", "3.14", "24.0", "2.5"):
            assert rattler.VersionSpec(str(spec.version)).matches(rattler.Version(version)) == (
                Version(version) in Requirement(entry).specifier), (entry, version)
    with pytest.raises(Exception, match="version spec"): rattler.MatchSpec("python>=3.11,,<3")
