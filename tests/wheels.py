"""Wheels that pip installs, and folders of them that it takes for package indexes."""

from __future__ import annotations

import zipfile
from pathlib import Path


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes], *requires: str) -> Path:
    """Save a wheel with these files, which wants these other packages; returns its path."""
    stem = f"{name.replace('-', '_')}-{version}"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, contents in files.items():
            wheel.writestr(file, contents)
        for file, text in about.items():
            wheel.writestr(f"{stem}.dist-info/{file}", text)
    return path


def write_index(folder: Path, *wheels: Path) -> str:
    """Make a folder a package index of these wheels, as PEP 503 has it; returns its address on this machine."""
    for wheel in wheels:
        project = folder / wheel.name.partition("-")[0].replace("_", "-")
        project.mkdir(parents=True, exist_ok=True)
        wheel.rename(project / wheel.name)
    for project in [path for path in folder.iterdir() if path.is_dir()]:
        links = "".join(f'<a href="{wheel.name}">{wheel.name}</a>\n' for wheel in sorted(project.glob("*.whl")))
        (project / "index.html").write_text(f"<!DOCTYPE html>\n<html><body>\n{links}</body></html>\n")
    return folder.as_uri()
