"""The contract between Python and the page: both declare the same traits, and the same data of knobs and charts."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints, is_typeddict

import anywidget
import pandas as pd
import pytest
import saelab_widgets
import torch
import traitlets
from saelab_widgets import (
    ParetoExplorer,
    TrainingLab,
    gate_explorer,
    probe_explorer,
    quantities,
    shrinkage_explorer,
    specs,
)
from saelab_widgets.instrument import Instrument

from saelab.sae.base import ARCHITECTURES

SOURCES = Path(__file__).parents[2] / "widgets" / "frontend" / "src"
WIDGETS: list[type[Instrument]] = [getattr(saelab_widgets, name) for name in saelab_widgets.__all__]
SPECS = {name: spec for name, spec in vars(specs).items() if is_typeddict(spec)}


class Member(NamedTuple):
    """What one side declares of one name."""

    kind: str
    """``number``, ``string``, ``boolean``, ``array``, ``object`` or ``bytes``; ``any`` matches each of them."""
    optional: bool = False


class TypeScript:
    """The declarations of some TypeScript files: a reader of as much of the language as the front end's types use.

    Where two files declare one name, the first file's declaration counts.
    """

    def __init__(self, paths: list[Path]) -> None:
        text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
        self.text = re.sub(r"/\*.*?\*/|^\s*//.*?$", "", text, flags=re.DOTALL | re.MULTILINE)

    def interfaces(self) -> list[str]:
        return re.findall(r"^export interface (\w+)", self.text, re.MULTILINE)

    def members(self, interface: str) -> dict[str, Member]:
        """What an interface declares, by name, with what it inherits."""
        head = rf"^(?:export )?interface {interface}(?:<[^{{]*>)?(?: extends (?P<bases>[\w, ]+))? {{(?P<body>.*?)^}}"
        found = re.search(head, self.text, re.MULTILINE | re.DOTALL)
        assert found is not None, f"there is no interface {interface}"
        inherited = [self.members(base.strip()) for base in (found["bases"] or "").split(",") if base.strip()]
        declared = [re.match(r"(\w+)(\??): (.*)", part, re.DOTALL) for part in _split(found["body"], ";")]
        own = {one[1]: Member(self._kind(one[3]), bool(one[2])) for one in declared if one is not None}
        assert len(own) == len(declared), f"not every member of {interface} could be read"
        return {name: member for members in (*inherited, own) for name, member in members.items()}

    def _kind(self, written: str) -> str:
        kinds = {self._kind_of_one(part) for part in _split(written, "|") if part != "null"}
        return kinds.pop() if len(kinds) == 1 else "any"

    def _kind_of_one(self, written: str) -> str:
        name = re.match(r"\w*", written)
        assert name is not None
        if written in ("number", "string", "boolean"):
            return written
        for kind, fits in {
            "bytes": written == "Bytes",
            "string": written.startswith('"'),
            "array": written.endswith("]"),
            "object": written.startswith("{") or name[0] in ("Record", "Readonly", "Pick"),
        }.items():
            if fits:
                return kind
        alias = re.search(rf"^(?:export )?type {name[0]} =(.*?);$", self.text, re.MULTILINE | re.DOTALL)
        if alias is not None:
            return self._kind(alias[1])
        return "object" if re.search(rf"^(?:export )?interface {name[0]}\b", self.text, re.MULTILINE) else "any"


def _split(text: str, separator: str) -> list[str]:
    """The parts of ``text`` between separators that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "{[(<") - (letter in "}])>")
        if depth == 0 and letter == separator:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def page_of(widget: type[Instrument]) -> TypeScript:
    """The front end's source of a widget: its own files, then the shared ones."""
    name = widget.__module__.rpartition(".")[2]
    return TypeScript([*sorted((SOURCES / "widgets").glob(f"{name}*.ts")), *sorted(SOURCES.glob("*.ts"))])


def synced(traits: Mapping[str, Any]) -> dict[str, Member]:
    """Of a widget's synced traits, those that are not anywidget's or ipywidgets' own."""
    foreign = anywidget.AnyWidget.class_traits(sync=True)
    return {
        name: Member(kind_of_trait(trait))
        for name, trait in traits.items()
        if name not in foreign and not name.startswith("_")
    }


def kind_of_trait(trait: Any) -> str:
    if isinstance(trait, traitlets.Enum):
        return kind_of_type(Literal[tuple(trait.values or ())])  # noqa: PD011
    kinds = {
        traitlets.Bool: "boolean",
        traitlets.Int: "number",
        traitlets.Float: "number",
        traitlets.Unicode: "string",
        traitlets.Bytes: "bytes",
        traitlets.List: "array",
        traitlets.Dict: "object",
    }
    return next((name for kind, name in kinds.items() if isinstance(trait, kind)), "any")


def kind_of_type(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        kinds = {kind_of_type(one) for one in get_args(hint) if one is not NoneType}
        return kinds.pop() if len(kinds) == 1 else "any"
    if get_origin(hint) is Literal:
        kinds = {kind_of_type(type(value)) for value in get_args(hint)}
        return kinds.pop() if len(kinds) == 1 else "any"
    if is_typeddict(hint):
        return "object"
    names = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(get_origin(hint) or hint, "any")


def keys_of(spec: Any) -> dict[str, Member]:
    """What a TypedDict declares."""
    return {
        name: Member(kind_of_type(hint), name in spec.__optional_keys__) for name, hint in get_type_hints(spec).items()
    }


def differences(python: Mapping[str, Member], page: Mapping[str, Member]) -> list[str]:
    """In words, every name that only one side has, or that the two declare differently."""
    found = [f"{name}: only Python has it" for name in python if name not in page]
    found += [f"{name}: only TypeScript has it" for name in page if name not in python]
    for name in python.keys() & page.keys():
        ours, theirs = python[name], page[name]
        if ours.kind != theirs.kind and "any" not in (ours.kind, theirs.kind):
            found.append(f"{name}: {ours.kind} in Python, {theirs.kind} in TypeScript")
        if ours.optional != theirs.optional:
            found.append(f"{name}: optional on one side only")
    return sorted(found)


def faults(value: Any, spec: Any) -> list[str]:
    """In words, how some data break the TypedDict that they are said to be."""
    names = get_type_hints(spec)
    found = [f"{spec.__name__} has no key {name}" for name in value if name not in names]
    found += [f"{spec.__name__} needs the key {name}" for name in spec.__required_keys__ if name not in value]
    for name, inner in value.items():
        for hint in (names.get(name), *get_args(names.get(name))):
            if is_typeddict(hint) and inner is not None:
                found += [
                    fault for one in (inner if isinstance(inner, list) else [inner]) for fault in faults(one, hint)
                ]
    return found


@pytest.mark.parametrize("widget", [one for one in WIDGETS if one is not TrainingLab], ids=lambda one: one.__name__)
def test_a_widget_and_its_page_declare_the_same_traits(widget: type[Instrument]) -> None:
    assert differences(synced(widget.class_traits(sync=True)), page_of(widget).members("Traits")) == []


@pytest.fixture(scope="module")
def lab() -> TrainingLab:
    return TrainingLab(torch.randn(2048, 8), d_sae=16, warm_up_steps=0)


def test_the_lab_and_its_page_declare_the_same_traits_beside_the_knobs(lab: TrainingLab) -> None:
    # A knob is a trait of its name, which the page takes from `knobs`; the lab may gain such traits when it is made.
    knobs = {knob["name"] for knob in lab.knobs}
    python = {name: member for name, member in synced(lab.traits(sync=True)).items() if name not in knobs}
    assert differences(python, page_of(TrainingLab).members("Traits")) == []


def test_every_knob_of_the_lab_is_bound_to_a_synced_number(lab: TrainingLab) -> None:
    traits = synced(lab.traits(sync=True))
    assert {knob["name"]: traits.get(knob["name"]) for knob in lab.knobs} == {
        knob["name"]: Member("number") for knob in lab.knobs
    }


@pytest.mark.parametrize(
    ("widget", "knobs"),
    [
        (saelab_widgets.GateExplorer, gate_explorer._knobs(0.0)),
        (saelab_widgets.ProbeExplorer, probe_explorer._knobs([1.0, 2.0])),
        (saelab_widgets.ShrinkageExplorer, shrinkage_explorer._knobs((0.0, 0.1))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_knob_is_bound_to_a_synced_number(widget: type[Instrument], knobs: list[specs.KnobSpec]) -> None:
    traits = synced(widget.class_traits(sync=True))
    assert {knob["name"]: traits.get(knob["name"]) for knob in knobs} == {
        knob["name"]: Member("number") for knob in knobs
    }


def test_both_sides_declare_the_same_specifications() -> None:
    assert set(SPECS) == set(TypeScript([SOURCES / "specs.ts"]).interfaces())


@pytest.mark.parametrize("name", SPECS)
def test_a_specification_has_the_same_keys_on_both_sides(name: str) -> None:
    source = TypeScript([SOURCES / "specs.ts", SOURCES / "chart_scale.ts"])
    assert differences(keys_of(SPECS[name]), source.members(name)) == []


def test_what_the_widgets_send_is_what_the_specifications_say(lab: TrainingLab) -> None:
    pareto = ParetoExplorer(
        pd.DataFrame({"architecture": ["gated", "mine"], "l0": [3.0, 4.0], "mine": [1, 2]}), y="mine"
    )
    sent: list[tuple[Any, list[Any]]] = [
        (specs.LabKnobSpec, lab.knobs),
        (specs.KnobSpec, gate_explorer._knobs(0.0)),
        (specs.KnobSpec, probe_explorer._knobs([1.0, 2.0])),
        (specs.KnobSpec, shrinkage_explorer._knobs((0.0, 0.1))),
        (specs.ChartSpec, lab.charts),
        (specs.ChartSpec, gate_explorer._charts(0.7)),
        (specs.ChartSpec, [shrinkage_explorer._bias_chart()]),
        (specs.FormulaSpec, shrinkage_explorer._formulas()),
        (specs.QuantitySpec, pareto.quantities),
        (specs.SeriesSpec, pareto.series),
        (specs.SeriesSpec, probe_explorer._controls(["frozen_decoder", "pca"])),
        (specs.ColorSpec, list(quantities.palette().values())),
    ]
    assert [(spec.__name__, fault) for spec, values in sent for value in values for fault in faults(value, spec)] == []


def test_every_colour_that_is_named_is_in_the_palette_or_the_theme(lab: TrainingLab) -> None:
    theme = set(re.findall(r"--saelab-([\w-]+):", (SOURCES / "theme.css").read_text(encoding="utf-8")))
    charts = [*lab.charts, *gate_explorer._charts(0.7), shrinkage_explorer._bias_chart()]
    named = {chart["color"] for chart in charts} | {line["color"] for chart in charts for line in chart["others"]}
    named |= {
        one["color"] for one in ParetoExplorer(pd.DataFrame({"architecture": list(ARCHITECTURES), "l0": 1.0})).series
    }
    named |= {"l0", "loss", "fvu", "gamma"}  # in the style sheets
    assert named <= quantities.palette().keys() | theme
    assert not theme & quantities.palette().keys(), "one place for a colour"


def test_the_palette_is_of_colours_that_the_page_accepts() -> None:
    colors = [color for spec in quantities.palette().values() for color in spec.values()]
    assert all(isinstance(color, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", color) for color in colors)
    assert quantities.palette().keys() >= {"l0", "gamma", "fvu", "probe", "dead", "loss", *ARCHITECTURES}


def test_a_name_that_one_side_lacks_is_told_with_the_side_that_has_it() -> None:
    ours, theirs = {"x": Member("number"), "y": Member("string")}, {"x": Member("array"), "z": Member("string", True)}
    assert differences(ours, theirs) == [
        "x: number in Python, array in TypeScript",
        "y: only Python has it",
        "z: only TypeScript has it",
    ]
