// Widgets in frames: as high as their content, and in the theme of the page.
const frames = () => [...document.querySelectorAll("iframe.saelab-widget")];
const dark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const chosen = document.body.dataset.theme;
  return chosen === "light" || chosen === "dark" ? chosen : dark.matches ? "dark" : "light";
}

function tellTheme() {
  for (const frame of frames()) {
    frame.style.colorScheme = theme();
    frame.contentWindow.postMessage({ saelabTheme: theme() }, "*");
  }
}

addEventListener("message", ({ data, source }) => {
  const frame = frames().find((one) => one.contentWindow === source);
  if (!frame || !data?.saelabHeight) return;
  frame.style.height = `${Math.ceil(data.saelabHeight)}px`;
  source.postMessage({ saelabTheme: theme() }, "*");
});

addEventListener("DOMContentLoaded", () => {
  tellTheme();
  new MutationObserver(tellTheme).observe(document.body, { attributeFilter: ["data-theme"] });
  dark.addEventListener("change", tellTheme);
});
