import type { AnyModel } from "@anywidget/types";
import { h } from "./dom";
import { createSlider } from "./slider";
import type { KnobSpec } from "./specs";
import { type AnyTraits, assign, onChange } from "./traits";

/** Why a knob is off as things stand, or null when it isn't. */
export type Reason = (knob: KnobSpec) => string | null;

/** A slider for each knob, bound to the trait of its name. `reasonFor` and `hides` are asked again when one of `watched` changes. */
export function createKnobs<Traits extends AnyTraits>(
  model: AnyModel<Traits>,
  knobs: readonly KnobSpec[],
  life: AbortSignal,
  reasonFor: Reason = () => null,
  watched: readonly (keyof Traits & string)[] = [],
  hides: (knob: KnobSpec) => boolean = () => false,
): HTMLElement {
  const sliders = knobs.map((knob) => {
    const name = knob.name as keyof Traits & string;
    const slider = createSlider(knob, life, (value) => assign(model, name, value as Traits[typeof name]));
    const show = (): void => slider.show(Number(model.get(name)));
    const enable = (): void => {
      slider.setDisabled(reasonFor(knob));
      slider.element.hidden = hides(knob);
    };
    onChange(model, [name], life, show);
    onChange(model, watched, life, enable);
    show();
    enable();
    return slider.element;
  });
  return h("div", { class: "saelab-knobs" }, ...sliders);
}
