"""Run tests on an emulated aarch64 machine: `make aarch64`.

The machine is a folder, ``build/aarch64``: Python and a few libraries out of Debian's packages for arm64, and the
wheels that pip would choose there, 2 GB in all. QEMU translates the instructions of its programs and passes their
system calls on, so nothing needs root and every file is where it is. The first run makes it; later ones only start
pytest. Importing torch takes 20 seconds.

Arguments are pytest's; without any, the tests of SAEs and of training run. Three variables of the environment:

- ``TREE``: another clone, whose code, tests and requirements are taken instead of this one's;
- ``WITH``: packages that its ``pyproject.toml`` does not name;
- ``QEMU_CPU``: a processor out of ``qemu-aarch64-static -cpu help``; ``max`` has SVE and bfloat16.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MACHINE = ROOT / "build" / "aarch64"
DEBIAN, VENV = MACHINE / "debian", MACHINE / "venv"
PROCESSOR = "neoverse-n1"  # of AWS Graviton 2 and Ampere Altra
TORCH = "torch==2.9.1"  # PyPI's later wheels for aarch64 need CUDA
SDIST = "transformers-stream-generator"  # plain Python, but published without a wheel
# It kills children within half a second, before an emulated one has taken a step.
TOO_FAST = "tests/saelab/training/test_checkpoints.py::test_a_run_that_is_killed_again_and_again"
TESTS = ["tests/saelab/sae", "tests/saelab/training", f"--deselect={TOO_FAST}"]
# For markers like `platform_machine == "x86_64"`, pip asks the Python that it runs on.
PIP = 'import platform, runpy; platform.machine = lambda: "aarch64"; runpy.run_module("pip", run_name="__main__")'


def run(*words: object) -> None:
    """Run a command; if it fails, exit below what it printed."""
    if subprocess.run([str(word) for word in words], check=False).returncode:
        sys.exit(f"Error: this command failed: {' '.join(map(str, words))}")


def check_programs() -> None:
    programs = {"qemu-aarch64-static": "qemu-user-static", "apt-get": "apt", "dpkg-deb": "dpkg"}
    missing = [package for program, package in programs.items() if not shutil.which(program)]
    if importlib.util.find_spec("pip") is None:
        missing.append("python3-pip")
    if missing:
        sys.exit(f"Error: the emulated machine is made on Debian, with packages that are missing: {' '.join(missing)}")


def unpack_debian() -> None:
    """Make `DEBIAN`, with a state of apt's own: the system's has neither this architecture nor an empty machine."""
    print("Unpacking Debian's Python for arm64 ...", flush=True)
    apt, unpacked = MACHINE / "apt", MACHINE / "debian.partial"
    for folder in (apt, unpacked):
        shutil.rmtree(folder, ignore_errors=True)
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "archives" / "partial").mkdir(parents=True)
    (apt / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt,
    }
    apt_get = ["apt-get", "--quiet=2", *(f"--option={name}={value}" for name, value in settings.items())]
    run(*apt_get, "update")
    run(*apt_get, "install", "--yes", "--download-only", "--no-install-recommends", "python3", "libstdc++6")
    for package in sorted((apt / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", package, unpacked)
    shutil.rmtree(apt)
    unpacked.rename(DEBIAN)


def requirements(tree: Path) -> tuple[list[str], list[str]]:
    """What the tests need, and the versions to take."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    for_tests = ["hypothesis", "nbclient", "nbval", "psutil", "pytest"]
    undeclared = ["setuptools"]  # torch.utils.benchmark's; a new venv of Python 3.11 has it
    wanted = [*project["dependencies"], *project["optional-dependencies"]["lm"], *for_tests, *undeclared]
    locked = (tree / "requirements.lock").read_text().splitlines()
    return [*wanted, *os.environ.get("WITH", "").split(), TORCH], [
        pin for pin in locked if not pin.startswith("torch==")
    ]


def install_wheels(version: str, wanted: list[str], locked: list[str]) -> None:
    """Make `VENV` for that version of Python."""
    print("Installing packages for aarch64 ...", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    requirement, constraint, wheels = (MACHINE / name for name in ("requirements.txt", "constraints.txt", "wheels"))
    requirement.write_text("\n".join(wanted))
    constraint.write_text("\n".join(locked))
    quiet = ["--quiet", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "wheel", *quiet, "--no-deps", "-c", constraint, "--wheel-dir", wheels, SDIST)
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{glibc}_aarch64" for glibc in range(17, 37))]  # Debian 12: 36
    run(
        *[
            sys.executable,
            "-c",
            PIP,
            "install",
            *quiet,
            "--no-compile",
            "--no-warn-conflicts",
            "--only-binary",
            ":all:",
        ],
        *["--python-version", version, *(f"--platform={name}" for name in platforms), "--find-links", wheels],
        *["-r", requirement, "-c", constraint, "--target", VENV / "lib" / f"python{version}" / "site-packages"],
    )


def make_machine(tree: Path) -> Path:
    """Its Python. What an earlier run made is kept, the packages as long as the same ones are wanted."""
    if not DEBIAN.exists():
        unpack_debian()
    version = (DEBIAN / "usr" / "bin" / "python3").readlink().name.removeprefix("python")
    wanted, locked = requirements(tree)
    installed, content = VENV / "installed.txt", "\n".join([version, *wanted, *locked])
    if not installed.exists() or installed.read_text() != content:
        install_wheels(version, wanted, locked)
        installed.write_text(content)
    # A venv whose Python is a script: under its name Python finds the packages, and children are started by it.
    (VENV / "pyvenv.cfg").write_text(f"home = {DEBIAN / 'usr' / 'bin'}\n")
    python = VENV / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    emulator = f'QEMU_LD_PREFIX="{DEBIAN}" QEMU_CPU="${{QEMU_CPU:-{PROCESSOR}}}" qemu-aarch64-static'
    python.write_text(f'#!/bin/sh\nexec env {emulator} -0 "$0" "{DEBIAN}/usr/bin/python3" "$@"\n')
    python.chmod(0o755)
    return python


def main() -> None:
    check_programs()
    tree = Path(os.environ.get("TREE", ROOT)).resolve()
    python = make_machine(tree)
    temporary = MACHINE / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {
        "PYTHONPATH": f"{tree}:{tree / 'widgets'}",
        "HF_HUB_OFFLINE": "1",
        # Nothing is written into the clone; what is compiled once saves every later run 20 seconds.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(MACHINE / "pycache"),
        "NUMBA_CACHE_DIR": str(MACHINE / "numba"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(MACHINE / "hypothesis"),
        "XDG_CACHE_HOME": str(MACHINE / "cache"),
        "TMPDIR": str(temporary),
    }
    arguments = sys.argv[1:] or TESTS
    print(f"Testing {tree} on aarch64, emulated: pytest {' '.join(arguments)}", flush=True)
    os.chdir(tree)
    pytest = [str(python), "-m", "pytest", "-o", f"cache_dir={MACHINE / 'pytest'}", *arguments]
    os.execve(python, pytest, os.environ | environment)


if __name__ == "__main__":
    main()
