/** The part of anywidget's interface that the widgets use: https://anywidget.dev/en/afm/ */
export interface Model<Traits> {
  get<K extends keyof Traits & string>(name: K): Traits[K];
  set<K extends keyof Traits & string>(name: K, value: Traits[K]): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: string, handler: (content: unknown) => void): void;
  off(event: string, handler: (content: unknown) => void): void;
}

export interface RenderContext<Traits> {
  model: Model<Traits>;
  el: HTMLElement;
}

/** Listens to an event for as long as `life` isn't aborted. */
export function listen<Traits>(
  model: Model<Traits>,
  event: string,
  life: AbortSignal,
  handler: (content: unknown) => void,
): void {
  model.on(event, handler);
  life.addEventListener("abort", () => model.off(event, handler));
}

/** Listens to changes of some traits for as long as `life` isn't aborted. */
export function onChange<Traits>(
  model: Model<Traits>,
  names: readonly (keyof Traits & string)[],
  life: AbortSignal,
  handler: () => void,
): void {
  for (const name of names) listen(model, `change:${name}`, life, handler);
}

/** Sets a trait, here and in the kernel. */
export function assign<Traits, K extends keyof Traits & string>(model: Model<Traits>, name: K, value: Traits[K]): void {
  model.set(name, value);
  model.save_changes();
}
