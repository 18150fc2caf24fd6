/** Helpers for the traits that a widget shares with Python: https://anywidget.dev/en/afm/ */
import type { AnyModel } from "@anywidget/types";

/** What every interface of traits is assignable to: `any`, since an interface has no index signature. */
export type AnyTraits = Record<string, any>;

/** Listens to an event for as long as `life` isn't aborted. */
export function listen<Traits extends AnyTraits>(
  model: AnyModel<Traits>,
  event: string,
  life: AbortSignal,
  handler: (content: unknown) => void,
): void {
  model.on(event, handler);
  life.addEventListener("abort", () => model.off(event, handler));
}

/** Listens to changes of some traits for as long as `life` isn't aborted. */
export function onChange<Traits extends AnyTraits>(
  model: AnyModel<Traits>,
  names: readonly (keyof Traits & string)[],
  life: AbortSignal,
  handler: () => void,
): void {
  for (const name of names) listen(model, `change:${name}`, life, handler);
}

/** Sets a trait, here and in the kernel. */
export function assign<Traits extends AnyTraits, K extends keyof Traits & string>(
  model: AnyModel<Traits>,
  name: K,
  value: Traits[K],
): void {
  model.set(name, value);
  model.save_changes();
}
