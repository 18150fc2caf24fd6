import { symbolCircle, symbolCross, symbolDiamond, symbolSquare, symbolStar, symbolTriangle, type SymbolType, symbolWye } from "d3-shape";

/** The shapes of marks by the names that Python gives them. */
export const SHAPES: Record<string, SymbolType> = {
  square: symbolSquare,
  triangle: symbolTriangle,
  circle: symbolCircle,
  diamond: symbolDiamond,
  cross: symbolCross,
  star: symbolStar,
  wye: symbolWye,
};

export const shapeOf = (name: string): SymbolType => SHAPES[name] ?? symbolCircle;
