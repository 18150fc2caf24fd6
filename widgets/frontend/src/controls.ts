import type { AnyModel } from "@anywidget/types";
import { h, KEEP_KEYS, uniqueId } from "./dom";
import type { OptionSpec } from "./specs";
import { type AnyTraits, assign, onChange } from "./traits";

/** A button that does something; `action` names it for tests. */
export function createButton(action: string, label: string, onClick: () => void, primary = false): HTMLButtonElement {
  const kind = primary ? "saelab-button saelab-primary" : "saelab-button";
  const button = h("button", { type: "button", class: kind, "data-action": action, ...KEEP_KEYS }, label);
  button.addEventListener("click", onClick);
  return button;
}

/** One of a few, all of them in sight: radio buttons bound to a trait that holds a text or a number. */
export function createRadios<Traits extends AnyTraits, K extends keyof Traits & string>(
  model: AnyModel<Traits>,
  name: K,
  legend: string,
  options: readonly OptionSpec[],
  life: AbortSignal,
): HTMLElement {
  const group = uniqueId(name);
  const isNumber = typeof model.get(name) === "number";
  const radios = options.map(({ value, label }) => {
    const radio = h("input", { type: "radio", name: group, value, [`data-${name.replaceAll("_", "-")}`]: value, ...KEEP_KEYS });
    radio.addEventListener("change", () => assign(model, name, (isNumber ? Number(value) : value) as Traits[K]));
    return { radio, label: h("label", {}, radio, label) };
  });
  const show = (): void => {
    for (const { radio } of radios) radio.checked = radio.value === String(model.get(name));
  };
  onChange(model, [name], life, show);
  show();
  return h("fieldset", { class: "saelab-choice" }, h("legend", {}, legend), ...radios.map(({ label }) => label));
}

export interface Select {
  readonly element: HTMLElement;
  readonly input: HTMLSelectElement;
  setOptions(options: readonly OptionSpec[]): void;
}

/** One of many, by a drop-down list bound to a trait that holds a text or a number. */
export function createSelect<Traits extends AnyTraits, K extends keyof Traits & string>(
  model: AnyModel<Traits>,
  name: K,
  label: string,
  options: readonly OptionSpec[],
  life: AbortSignal,
): Select {
  const id = uniqueId(name);
  const input = h("select", { id, "data-select": name, ...KEEP_KEYS });
  const isNumber = typeof model.get(name) === "number";
  input.addEventListener("change", () => assign(model, name, (isNumber ? Number(input.value) : input.value) as Traits[K]));
  const show = (): void => {
    input.value = String(model.get(name));
  };
  const setOptions = (some: readonly OptionSpec[]): void => {
    input.replaceChildren(...some.map((option) => h("option", { value: option.value }, option.label)));
    show();
  };
  onChange(model, [name], life, show);
  setOptions(options);
  return { input, setOptions, element: h("div", { class: "saelab-field" }, h("label", { for: id }, label), input) };
}

/** A tick box bound to a trait that is true or false. */
export function createToggle<Traits extends AnyTraits, K extends keyof Traits & string>(
  model: AnyModel<Traits>,
  name: K,
  label: string,
  life: AbortSignal,
): HTMLElement {
  const input = h("input", { type: "checkbox", "data-toggle": name, ...KEEP_KEYS });
  input.addEventListener("change", () => assign(model, name, input.checked as Traits[K]));
  const show = (): void => {
    input.checked = Boolean(model.get(name));
  };
  onChange(model, [name], life, show);
  show();
  return h("label", { class: "saelab-toggle" }, input, label);
}

/** Any number of a few: tick boxes bound to a trait that is a list of texts. `keyOf` gives what stands before a label. */
export function createToggles<Traits extends AnyTraits, K extends keyof Traits & string>(
  model: AnyModel<Traits>,
  name: K,
  legend: string,
  options: readonly OptionSpec[],
  life: AbortSignal,
  keyOf?: (value: string) => Node,
): HTMLFieldSetElement {
  const chosen = (): readonly string[] => model.get(name) as readonly string[];
  const boxes = options.map(({ value, label }) => {
    const box = h("input", { type: "checkbox", value, [`data-${name.replaceAll("_", "-")}`]: value, ...KEEP_KEYS });
    box.addEventListener("change", () => {
      const others = chosen().filter((other) => other !== value);
      assign(model, name, (box.checked ? [...others, value] : others) as Traits[K]);
    });
    return { box, label: h("label", {}, box, ...(keyOf ? [keyOf(value)] : []), label) };
  });
  const show = (): void => {
    for (const { box } of boxes) box.checked = chosen().includes(box.value);
  };
  onChange(model, [name], life, show);
  show();
  return h("fieldset", { class: "saelab-choice" }, h("legend", {}, legend), ...boxes.map(({ label }) => label));
}

interface Limits {
  min: number;
  max: number;
}

/**
 * A whole number in [min, max], typed or stepped, bound to a trait; what is out of range goes to the nearest limit. Limits
 * that depend on other traits are given as a function, and these traits as `watched`.
 */
export function createNumber<Traits extends AnyTraits, K extends keyof Traits & string>(
  model: AnyModel<Traits>,
  name: K,
  label: string,
  limits: Limits | (() => Limits),
  life: AbortSignal,
  watched: readonly (keyof Traits & string)[] = [],
): HTMLElement {
  const id = uniqueId(name);
  const limitsNow = (): Limits => (typeof limits === "function" ? limits() : limits);
  const input = h("input", { type: "number", id, step: 1, "data-number": name, ...KEEP_KEYS });
  const show = (): void => {
    const { min, max } = limitsNow();
    [input.min, input.max] = [String(min), String(max)];
    input.value = String(model.get(name));
  };
  input.addEventListener("change", () => {
    const { min, max } = limitsNow();
    const value = Math.round(input.valueAsNumber);
    if (Number.isFinite(value)) assign(model, name, Math.min(max, Math.max(min, value)) as Traits[K]);
    show();
  });
  onChange(model, [name, ...watched], life, show);
  show();
  return h("div", { class: "saelab-field" }, h("label", { for: id }, label), input);
}
