/**
 * Turns any number of requests into one call a frame. The first comes when the task that asks has ended, so that the work
 * is done while the frame is waited for; what is asked for in the meantime, at the next frame.
 */
export function oncePerFrame(draw: () => void, life: AbortSignal): () => void {
  let frame = 0;
  let requested = false;
  life.addEventListener("abort", () => cancelAnimationFrame(frame));
  const run = (): void => {
    if (!requested || life.aborted) return;
    requested = false;
    draw();
  };
  const onFrame = (): void => {
    frame = requested ? requestAnimationFrame(onFrame) : 0;
    run();
  };
  return () => {
    if (life.aborted) return;
    requested = true;
    if (frame) return;
    frame = requestAnimationFrame(onFrame);
    queueMicrotask(run);
  };
}

/** Calls at once, then at most once per interval, and never loses the last request. */
export function atMostEvery(milliseconds: number, call: () => void, life: AbortSignal): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let requested = false;
  life.addEventListener("abort", () => clearTimeout(timer));
  const run = (): void => {
    requested = false;
    call();
    timer = setTimeout(() => {
      timer = undefined;
      if (requested) run();
    }, milliseconds);
  };
  return () => {
    requested = true;
    if (timer === undefined && !life.aborted) run();
  };
}
