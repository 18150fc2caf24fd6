import type { AnyModel } from "@anywidget/types";
import { h, setText } from "./dom";
import { decodeFloat32 } from "./buffers";
import { connectKernel, type Kernel } from "./kernel";
import { onChange } from "./traits";

export interface StatusTraits {
  status: string;
  error: string;
}

export interface Status extends Kernel {
  readonly element: HTMLElement;
}

const NO_ANSWER = "The kernel does not answer: it is busy, or there is none. What is looked up goes on working.";

/**
 * The line below a widget: what it does, what went wrong, and whether the kernel answers. `buffers` names the traits with
 * binary data, which are asked for again where they are missing: Colab drops the buffers of a widget's first state.
 */
export function createStatus<Traits extends StatusTraits>(
  model: AnyModel<Traits>,
  life: AbortSignal,
  buffers: readonly (keyof Traits & string)[] = [],
): Status {
  const status = h("span", { role: "status" });
  const error = h("span", { role: "alert" });
  const kernel = h("span", { role: "status", "data-show": "kernel" });
  const show = (): void => {
    setText(status, model.get("status"));
    setText(error, model.get("error"));
  };
  onChange(model, ["status", "error"], life, show);
  show();
  const { ask } = connectKernel(model, life, (waiting) => setText(kernel, waiting ? NO_ANSWER : ""));
  const missing = buffers.filter((name) => decodeFloat32(model.get(name)).length === 0);
  ask({ kind: "hello", need: missing });
  return { ask, element: h("p", { class: "saelab-status" }, error, kernel, status) };
}
