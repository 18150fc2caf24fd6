"""Check what would be released: `make check-dist`.

Builds sdist and wheel from a clean clone of HEAD and checks that each holds what it should and nothing else. Then, for
every Python from 3.11 on that it finds, installs the wheel into an empty environment and, in an empty folder,
opens the embedded model, trains, and loads the widgets.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST = (3, 11)
IN_WHEEL = {"saelab/": "saelab/", "widgets/saelab_widgets/": "saelab_widgets/"}
NOT_IN_SDIST = {".ci/run"}
SMOKE = """
import sys, importlib.util, saelab, saelab_widgets
from saelab.cli.lab import packaged_tutorials
assert sys.prefix in saelab.__file__, saelab.__file__
model = saelab.load_language_model()
store = saelab.harvest(model, "blocks.1.hook_resid_post", saelab.load_text()[:60], n_tokens=4096, progress=False)
sae = saelab.GatedSAE(256, 256)
before = saelab.evaluate(sae, store).fvu
saelab.Trainer(sae, store, saelab.TrainingConfig(n_steps=60, batch_size=512), l1_coefficient=4).run(progress=False)
after = saelab.evaluate(sae, store).fvu
assert after < 0.8 * before, (before, after)
lab = saelab_widgets.TrainingLab(store, d_sae=64, warm_up_steps=20)
assert "<script" in lab.to_html() and lab._picture()[:4] == bytes([137]) + b"PNG"
names = sorted(path.name for path in packaged_tutorials().glob("*.ipynb"))
assert names and names[0] == "00_start_here.ipynb"
print(f"saelab {saelab.__version__}: FVU {before:.2f} -> {after:.2f} in 60 steps, {len(names)} tutorial(s)")
"""


def run(*words: object, cwd: Path | None = None) -> str:
    """Run a command and return its output; if it fails, exit with what it printed."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"Error: {' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


def pythons() -> dict[str, str]:
    """Paths of the Pythons on this machine that SAELab supports, one per minor version."""
    on_path = [shutil.which(f"python3.{minor}") for minor in range(OLDEST[1], OLDEST[1] + 9)]
    managed = sorted(map(str, (Path.home() / ".pyenv" / "versions").glob("*/bin/python")))
    found: dict[str, str] = {}
    for path in [sys.executable, *filter(None, on_path), *managed]:
        code = "import sys, venv, ensurepip; print(*sys.version_info[:3])"
        done = subprocess.run([path, "-c", code], capture_output=True, encoding="utf-8", check=False)
        if done.returncode == 0:
            version = tuple(map(int, done.stdout.split()))
            if version >= OLDEST:
                found.setdefault(".".join(map(str, version[:2])), path)
    return dict(sorted(found.items(), key=lambda item: int(item[0].split(".")[1])))


def expected_in_wheel(tracked: Sequence[str]) -> set[str]:
    """Names in the wheel, except for its ``dist-info``: the tracked files of both packages, and the tutorials."""
    return {
        new + name.removeprefix(old) for name in tracked for old, new in IN_WHEEL.items() if name.startswith(old)
    } | {f"share/saelab/{name}" for name in tracked if name.startswith("tutorials/")}


def names_in_wheel(wheel: Path) -> set[str]:
    """Names actually in a wheel, with ``share/...`` for its shared data files."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    return {name.split(".data/data/")[-1] for name in names}


def check_contents(tracked: list[str], sdist: Path, wheel: Path) -> None:
    """Exit with an error unless both hold exactly the files that git tracks."""
    with tarfile.open(sdist) as archive:
        in_sdist = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for what, found, wanted in (
        (sdist.name, in_sdist, {*tracked, "PKG-INFO"} - NOT_IN_SDIST),
        (wheel.name, names_in_wheel(wheel), expected_in_wheel(tracked)),
    ):
        if found != wanted:
            sys.exit(f"Error: {what} lacks {sorted(wanted - found)} and should not have {sorted(found - wanted)}")
        size = (sdist if what == sdist.name else wheel).stat().st_size
        print(f"{what}: {len(found)} files, {size / 1e6:.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--newest", action="store_true", help="the newest of every dependency, not those of the lock")
    parser.add_argument("--only", metavar="3.X", help="one Python")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clone = folder / "clone"
        run("git", "clone", "--quiet", "--no-hardlinks", ROOT, clone)
        run("make", "dist", f"PYTHON={sys.executable}", cwd=clone)
        (sdist,), (wheel,) = (clone / "dist").glob("*.tar.gz"), (clone / "dist").glob("*.whl")
        check_contents(run("git", "ls-files", cwd=clone).splitlines(), sdist, wheel)
        constraint = [] if arguments.newest else ["--constraint", clone / "requirements.lock"]
        chosen = {version: path for version, path in pythons().items() if arguments.only in (None, version)}
        if not chosen:
            sys.exit("Error: there is no Python to try the wheel on")
        for version, path in chosen.items():
            start, home = time.monotonic(), folder / version
            run(path, "-m", "venv", home / "venv")
            python = home / "venv" / "bin" / "python"
            run(python, "-m", "pip", "install", "--quiet", *constraint, f"saelab[lm,widgets] @ {wheel.as_uri()}")
            said = run(python, "-I", "-c", SMOKE, cwd=home).strip().splitlines()[-1]
            run(home / "venv" / "bin" / "saelab", "train", "--help", cwd=home)
            print(f"Python {version}: {said} ({time.monotonic() - start:.0f} s)", flush=True)
            shutil.rmtree(home)


if __name__ == "__main__":
    main()
