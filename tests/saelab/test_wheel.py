"""`pip install` of what we build gives a working package, with everything it needs and nothing else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from check_dist import expected_in_wheel, names_in_wheel  # type: ignore[import-not-found]  # noqa: E402

NEEDED = (
    "saelab/assets/reviews-4l/model.safetensors",
    "saelab/assets/reviews-4l/tokenizer.json",
    "saelab/assets/reviews-4l/sampled_text.json.xz",
    "saelab/assets/sentiment.jsonl",
    "saelab_widgets/static/training_lab.js",
    "saelab_widgets/static/training_lab.css",
)


def test_wheel_holds_what_it_needs_and_trains_from_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("saelab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert set(NEEDED) <= set(names)
    tops = {name.split("/")[0].split("-")[0] for name in names}
    assert tops == {"saelab", "saelab_widgets"}
    assert any(name.endswith(".data/data/share/saelab/tutorials/00_start_here.ipynb") for name in names)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    if listed.returncode == 0:  # in a clone: both packages and the tutorials, and not one file else
        assert names_in_wheel(wheel) == expected_in_wheel(listed.stdout.splitlines())
    code = (
        "import saelab, torch; assert 'site' in saelab.__file__, saelab.__file__\n"
        "store = saelab.harvest(saelab.load_language_model(), 'blocks.0.hook_resid_post', saelab.load_text()[:9],"
        " progress=False)\n"
        "saelab.Trainer(saelab.GatedSAE(256, 64), store, saelab.TrainingConfig(n_steps=3)).run(progress=False)\n"
        "import saelab_widgets\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
