import { h, KEEP_KEYS, setText, uniqueId } from "./dom";
import { knobScale } from "./knob_scale";
import type { KnobSpec } from "./specs";
import "./slider.css";

export interface Slider {
  readonly element: HTMLElement;
  /** Shows a value that may have come from anywhere. */
  show(value: number): void;
  /** Enables the slider, or disables it with the reason. */
  setDisabled(reason: string | null): void;
}

/** The library's one slider: a native range input, so that keyboard, touch and screen readers work as everywhere. */
export function createSlider(knob: KnobSpec, life: AbortSignal, onInput: (value: number) => void): Slider {
  const scale = knobScale(knob);
  const id = uniqueId(knob.name);
  const text = (value: number): string => (knob.unit ? `${scale.format(value)} ${knob.unit}` : scale.format(value));

  // The limits come before the value, which the browser would else clamp to its own limits.
  const input = h("input", {
    type: "range",
    id,
    min: scale.min,
    max: scale.max,
    step: scale.step,
    "aria-describedby": `${id}-help`,
    "data-knob": knob.name,
    ...KEEP_KEYS,
  });
  // An output is a live region by default, and the input's value text has already been announced.
  const output = h("output", { for: id, "aria-live": "off" });
  const reset = h(
    "button",
    {
      type: "button",
      class: "saelab-slider-reset",
      "aria-label": `Reset ${knob.label} to ${text(knob.default)}`,
      title: `Reset to ${text(knob.default)}`,
      ...KEEP_KEYS,
    },
    "↺",
  );
  const label = h("label", { for: id }, knob.label);
  if (knob.symbol) label.append(" ", h("i", {}, knob.symbol));
  const track = h("div", { class: "saelab-slider-track" }, input);
  if (knob.paper !== null && knob.paper >= knob.min && knob.paper <= knob.max) {
    const tick = h("span", { class: "saelab-slider-tick", title: `The paper uses ${text(knob.paper)}` }, "paper");
    tick.style.setProperty("--at", String(fraction(knob.paper)));
    track.append(tick);
  }
  // The two texts lie on one another, so that swapping them moves nothing.
  const help = h("span", {}, knob.help);
  const reason = h("span", {});
  const unit = knob.unit ? [h("span", { class: "saelab-unit" }, knob.unit)] : [];
  const element = h(
    "div",
    { class: "saelab-slider" },
    h(
      "div",
      { class: "saelab-slider-head" },
      label,
      h("span", { class: "saelab-slider-value" }, output, ...unit),
    ),
    h("div", { class: "saelab-slider-row" }, track, reset),
    h("p", { class: "saelab-help", id: `${id}-help` }, help, reason),
  );

  let shown = NaN;
  let dragging = false;

  function fraction(value: number): number {
    return (scale.toPosition(value) - scale.min) / (scale.max - scale.min || 1); // one value alone has no range
  }

  function moveThumb(): void {
    // What is at this position already stays: rounding would move the thumb by a step.
    if (scale.toValue(input.valueAsNumber) !== shown) input.value = String(scale.toPosition(shown));
  }

  function show(value: number): void {
    shown = value;
    if (!dragging) moveThumb();
    setText(output, scale.format(value));
    input.setAttribute("aria-valuetext", text(value));
    input.style.setProperty("--fill", String(fraction(value)));
  }

  function release(): void {
    dragging = false;
    moveThumb();
  }

  input.addEventListener("pointerdown", () => {
    dragging = true;
  });
  // On the document: the pointer may be let go anywhere.
  for (const event of ["pointerup", "pointercancel"]) {
    document.addEventListener(event, () => dragging && release(), { signal: life });
  }
  input.addEventListener("input", () => {
    const value = scale.toValue(input.valueAsNumber);
    show(value);
    onInput(value);
  });
  reset.addEventListener("click", () => {
    show(knob.default);
    onInput(knob.default);
  });

  return {
    element,
    show,
    setDisabled(why) {
      input.disabled = reset.disabled = why !== null;
      element.classList.toggle("saelab-disabled", why !== null);
      setText(reason, why ?? "");
      help.classList.toggle("saelab-hidden", why !== null);
      reason.classList.toggle("saelab-hidden", why === null);
    },
  };
}
