// What the viewer's modules pass to each other. For the type checker; not shipped.

export type Pair = [number, number];
export type Limits = [number, number];

/** `store/format/geometry.py`: every pair is (height, width) or (top, left), in pixels. */
export interface Geometry {
  source: Pair;
  input: Pair;
  resized: Pair;
  offset: Pair;
  grid: Pair;
  patch: Pair;
  crop: [number, number, number, number] | null;
  flip_vertical: boolean;
  flip_horizontal: boolean;
  patch_origin: Pair;
  receptive: Pair | null;
}

export interface PixelAxis {
  low: Uint16Array;
  high: Uint16Array;
  share: Float32Array;
  seen: Uint8Array;
}

export interface Sampler {
  height: number;
  width: number;
  cols: number;
  y: PixelAxis;
  x: PixelAxis;
}

export interface Tables {
  colour: Float32Array;
  keep: Float32Array;
}

export interface Span {
  name: string;
  kind: string;
  start: number;
  stop: number;
  camera: string | null;
  grid: Pair | null;
  role: string | null;
}

export interface Phase {
  layers: number;
  heads: number;
  steps: number | null;
  query_groups: string[];
  cameras: string[];
  query: Span[];
  key: Span[];
}

export interface Camera {
  height: number;
  width: number;
  grid: Pair;
  coverage: Float32Array;
  geometry: Geometry;
}

export interface Episode {
  store: string;
  run: string;
  episode: string;
  name: string;
  version: string;
  outcome: string;
  task: string | null;
  date: string | null;
  instruction: string;
  precision: string;
  rate: number | null;
  total_frames: number | null;
  frames: number[];
  cameras: Record<string, Camera>;
  phases: Record<string, Phase>;
}

/** Some cells of a camera's grid, both ends included. */
export interface Brush {
  camera: string;
  rows: Pair;
  cols: Pair;
}

/** Everything that the page shows; written into the address. */
export interface View {
  view: "look" | "compare" | "sql";
  store: string;
  run: string;
  episode: string;
  otherRun: string;
  other: string;
  phase: string;
  query: string;
  reduce: "max" | "mean";
  layer: number;
  head: string;
  step: number;
  keyframe: number;
  brush: string;
  metric: string;
  matrix: "episode" | "keyframe";
  traces: string;
  camera: string;
  cmap: string;
  alpha: number;
  blend: "spotlight" | "proportional" | "constant";
  interpolation: "bilinear" | "nearest";
  scale: "frame" | "episode" | "cameras";
  sinks: boolean;
  text: string;
  outcome: string;
  where: string;
  order: string;
  descending: boolean;
  sql: string;
  pairing: "episodes" | "groups";
  time: number;
}

export type Change = (changed: Partial<View>) => void;

export interface NumberArray {
  shape: number[];
  dims: string[];
  data: Float32Array;
}

/** Maps of a camera: a head's, or those of all heads of a layer. */
export interface Maps {
  keyframes: number;
  heads: number;
  size: number;
  data: Float32Array;
}

export interface Question {
  path: string;
  parameters: Record<string, string | number | boolean>;
}

export interface Page {
  total: number;
  offset: number;
  limit: number;
  rows: Record<string, any>[];
}

export interface Matrix {
  metric: string;
  definition: string;
  unit: string;
  values: (number | null)[][];
}

export interface Trace {
  metric: string;
  unit: string;
  heads: number[];
  frames: number[];
  values: (number | null)[][];
}

export interface Token {
  index: number;
  text: string;
  span: string;
  role: string | null;
}

export interface SqlRows {
  columns: { name: string; type: string }[];
  rows: any[][];
}
