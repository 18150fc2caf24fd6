type Attributes = Record<string, string | number | boolean>;

/** An element with attributes (true: present, false: absent). Children given as strings become text, never markup. */
export function h<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Attributes = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/** Sets a text only if it differs: a screen reader would announce an equal one again. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Replaces the children. Where one of them has the focus, that at its place has it after: keys go on from there. */
export function replaceChildren(parent: Element, children: readonly Element[]): void {
  const at = [...parent.children].findIndex((child) => child.matches(":focus-within"));
  parent.replaceChildren(...children);
  if (at < 0) return;
  const next = children[Math.min(at, children.length - 1)];
  next?.querySelector<HTMLElement>("button, [tabindex='0']")?.focus({ preventScroll: true });
}

/** An id that differs between widgets, each of which loads its own copy of this module. */
export function uniqueId(prefix: string): string {
  return `saelab-${prefix}-${Math.random().toString(36).slice(2, 10)}`;
}

/** JupyterLab's notebook takes arrow keys, space and enter for itself unless the focused element says this. */
export const KEEP_KEYS = { "data-lm-suppress-shortcuts": "true" } as const;
