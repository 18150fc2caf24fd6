"""The sources of the site, before Sphinx reads them; `make check-site` tests the site itself."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import saelab_widgets

import saelab
from saelab.exercises import check

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "site"))
import gallery
import make_site
import reference


@pytest.mark.parametrize("module", [saelab, saelab_widgets, check], ids=lambda module: module.__name__)
def test_every_public_name_is_on_one_page_of_the_reference(module: object) -> None:
    pages = [page for page in reference.PAGES.values() if page[1] == module.__name__]  # type: ignore[attr-defined]
    assert Counter(name for _, _, names in pages for name in names) == Counter(module.__all__)  # type: ignore[attr-defined]


def test_every_widget_is_in_the_gallery() -> None:
    assert set(gallery.WIDGETS) == set(saelab_widgets.__all__)
    page = (make_site.HERE / "pages" / "gallery.md").read_text(encoding="utf-8")
    assert [line.split()[-1] for line in page.splitlines() if line.startswith("```{widget}")] == list(gallery.WIDGETS)


def test_every_notebook_becomes_a_page_and_keeps_its_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_site, "SOURCE", tmp_path / "source")
    make_site.gather()
    notebooks = sorted((make_site.ROOT / "tutorials").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        before, after = (
            json.loads(one.read_text(encoding="utf-8")) for one in (path, tmp_path / "source" / "tutorials" / path.name)
        )
        outputs, kept = ([cell.get("outputs") for cell in notebook["cells"]] for notebook in (before, after))
        assert kept == outputs
    assert {path.name for path in (make_site.ROOT / "docs").glob("*.md")} == {
        path.name for path in (tmp_path / "source" / "docs").glob("*.md")
    }


@pytest.mark.parametrize(
    ("link", "without_address", "with_address"),
    [
        ("[runs](../docs/large_runs.md)", "[runs](../docs/large_runs.md)", "[runs](../docs/large_runs.md)"),
        ("[rules](../CONTRIBUTING.md#x)", "rules", "[rules](https://host.test/me/repo/blob/HEAD/CONTRIBUTING.md)"),
        ("[paper](https://arxiv.org/abs/1)", "[paper](https://arxiv.org/abs/1)", "[paper](https://arxiv.org/abs/1)"),
        ("[gone](../no_such_file.md)", "[gone](../no_such_file.md)", "[gone](../no_such_file.md)"),  # Sphinx complains
        ("![seen](../docs/pictures/lab.png)", "![seen](../docs/pictures/lab.png)", "![seen](../docs/pictures/lab.png)"),
    ],
)
def test_links_to_files_outside_the_site_lead_to_the_repository_or_are_words(
    link: str, without_address: str, with_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, expected in (("", without_address), ("https://host.test/me/repo", with_address)):
        monkeypatch.setattr(make_site, "repository", lambda address=address: address)
        inside = {Path("docs/large_runs.md"), Path("docs/pictures/lab.png")}
        mended = make_site.mend_links(f"See {link}.", page=Path("tutorials/one.ipynb"), inside=inside)
        assert mended == f"See {expected}."


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ('[tool.saelab]\nrepository = "me/fork"', "https://github.com/me/fork"),
        ('[tool.saelab]\nrepository = ""', ""),
        ("[tool.other]", ""),
    ],
)
def test_the_address_is_the_one_that_make_address_sets(
    setting: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text(setting, encoding="utf-8")
    monkeypatch.setattr(make_site, "ROOT", tmp_path)
    assert make_site.repository() == address
