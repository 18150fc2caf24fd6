/** The part of anywidget's interface that the widgets use: https://anywidget.dev/en/afm/ */
export interface Model<Traits> {
  get<K extends keyof Traits & string>(name: K): Traits[K];
  set<K extends keyof Traits & string>(name: K, value: Traits[K]): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: string, handler: () => void): void;
  off(event: string, handler: () => void): void;
}

export interface RenderContext<Traits> {
  model: Model<Traits>;
  el: HTMLElement;
}

/** Listens to changes of some traits for as long as `life` isn't aborted. */
export function onChange<Traits>(
  model: Model<Traits>,
  names: readonly (keyof Traits & string)[],
  life: AbortSignal,
  handler: () => void,
): void {
  for (const name of names) {
    const event = `change:${name}`;
    model.on(event, handler);
    life.addEventListener("abort", () => model.off(event, handler));
  }
}
