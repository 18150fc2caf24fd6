import type { ColorSpec } from "./specs";

/** Every colour that Python names: of quantities and of architectures. */
export type Palette = Readonly<Record<string, ColorSpec>>;

/** Nothing but a hexadecimal colour gets into the style sheet, whatever an exported page's state holds. */
const HEX = /^#(?:[0-9a-f]{3}|[0-9a-f]{6})$/i;
const NAME = /^[a-z][\w-]*$/i;

/** The CSS custom properties of a palette, by name. A colour that is malformed is left out. */
export function paletteProperties(palette: Palette): Map<string, string> {
  const properties = new Map<string, string>();
  const add = (name: string, light: unknown, dark: unknown): void => {
    const isColor = [light, dark].every((color) => typeof color === "string" && HEX.test(color));
    if (isColor && NAME.test(name)) properties.set(`--saelab-${name}`, `light-dark(${light}, ${dark})`);
  };
  for (const [name, color] of Object.entries(palette)) {
    add(name, color?.light, color?.dark);
    add(`${name}-ink`, color?.light_ink ?? color?.light, color?.dark_ink ?? color?.dark);
  }
  return properties;
}

/** Applies palettes to an element, each in place of the one before. */
export function paletteOf(element: HTMLElement): (palette: Palette) => void {
  let before: Iterable<string> = [];
  return (palette) => {
    const properties = paletteProperties(palette);
    for (const name of before) if (!properties.has(name)) element.style.removeProperty(name);
    for (const [name, value] of properties) element.style.setProperty(name, value);
    before = [...properties.keys()];
  };
}
