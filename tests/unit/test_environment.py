"""One declaration of what the project needs: conda's file, the lock and pyproject.toml cannot drift apart."""

import re
import tomllib

import yaml

from capture_lib.utils import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def declared() -> dict[str, str]:
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    return {name_of(requirement): requirement for requirement in requirements}


def test_conda_takes_python_and_pip_and_leaves_the_rest_to_the_project():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [package for package in packages if isinstance(package, str)]
    pip = next(package["pip"] for package in packages if isinstance(package, dict))
    assert {name_of(package) for package in conda} == {"python", "pip"}
    assert pip == ["--constraint requirements.lock", "--editable .[test]"]
    assert PROJECT["requires-python"] in conda[0].replace("python ", "").split(",")


def test_binder_takes_a_python_that_the_project_allows_and_the_lock():
    packages = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text())["dependencies"]
    assert packages == ["python=3.11", "pip"] and PROJECT["requires-python"] == ">=3.11"
    script = ROOT / ".binder" / "postBuild"  # runs in the repository's root
    assert script.read_text().startswith("#!") and script.stat().st_mode & 0o100
    assert "--constraint requirements.lock --editable ." in script.read_text()


def test_every_declared_package_is_locked_within_its_range():
    locked = dict(line.split("==") for line in LOCK.splitlines() if "==" in line)
    locked = {name.lower().replace("_", "-"): version for name, version in locked.items()}
    missing = set(declared()) - set(locked) - {"faiss-cpu"}  # of the two faiss, the lock's machine has faiss-gpu
    assert not missing
    for name, requirement in declared().items():
        least = re.search(r">=([\d.]+)", requirement)
        if name in locked and least:
            numbers = [[int(part) for part in re.findall(r"\d+", text)[:3]] for text in (locked[name], least[1])]
            assert numbers[0] >= numbers[1], name


def test_the_lock_names_no_host_and_no_path():
    assert not re.search(r"https?://|file:|@|--index|--find-links", LOCK)


def test_the_faiss_of_each_platform_is_chosen_by_marker():
    assert "sys_platform == 'linux'" in declared()["faiss-gpu"]
    assert "sys_platform != 'linux'" in declared()["faiss-cpu"]
