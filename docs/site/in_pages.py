"""Sphinx extension: widgets in frames, links from a widget's picture to the widget, and badges replaced by text."""

from docutils import nodes
from gallery import WIDGETS
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class WidgetInAFrame(SphinxDirective):  # type: ignore[misc]  # Sphinx is not there where types are checked
    """``{widget} NAME``: the saved page of a widget in a frame, with links to that page and to the reference."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the nodes."""
        name = self.arguments[0]
        if name not in WIDGETS:
            raise self.error(f"there is no widget {name}; there are {', '.join(WIDGETS)}")
        page = f"widgets/{name}.html"
        frame = f'<iframe class="saelab-widget" src="{page}" title="{name}" loading="lazy"></iframe>'
        parts, _ = self.parse_inline(f"{{py:class}}`saelab_widgets.{name}`")
        alone = nodes.reference("", "On a page of its own", refuri=page)
        more = nodes.paragraph("", "", alone, nodes.Text(" · "), *parts, classes=["saelab-aside"])
        return [nodes.raw("", frame, format="html"), more]


def lead_to_gallery(app: Sphinx, document: nodes.document) -> None:
    """Describe the pictures in cells' outputs, and link a widget's picture to the widget in the gallery."""
    to_root = "../" * app.env.docname.count("/")
    for cell in document.findall(nodes.container):
        if cell.get("nb_element") != "cell_code":
            continue
        made = next((name for name in WIDGETS if f"{name}(" in cell.astext()), "")
        is_widget = "tag_widget" in cell["classes"]
        for picture in cell.findall(nodes.image):
            picture["alt"] = (
                f"{made or 'The widget'} as this notebook was saved" if is_widget else "Output of this cell"
            )
        if is_widget:
            words = f"{made} in the gallery" if made else "the gallery"
            link = nodes.reference("", words, refuri=f"{to_root}gallery.html" + (f"#{made.lower()}" if made else ""))
            text = "A picture; what answers without Python, answers here: "
            cell += nodes.paragraph("", text, link, nodes.Text("."), classes=["saelab-aside"])


def without_foreign_pictures(app: Sphinx, document: nodes.document) -> None:
    """Replace pictures from other hosts (badges) by their alternative text."""
    for picture in list(document.findall(nodes.image)):
        if "://" in picture["uri"]:
            picture.replace_self(nodes.Text(picture.get("alt", "")))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_directive("widget", WidgetInAFrame)
    app.connect("doctree-read", lead_to_gallery)
    app.connect("doctree-read", without_foreign_pictures)
    return {"parallel_read_safe": True}
