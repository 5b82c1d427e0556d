// What the viewer's modules pass to each other. For the type checker; not shipped. What the service answers
// with is in service.d.ts, which is made from its OpenAPI document.

import type declared from "./questions.json";
import type { components, operations } from "./service";

type Schemas = components["schemas"];
type Listing = Query<operations["episodes"]>;

export type Pair = [number, number];
export type Limits = [number, number];

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

export type Blend = "auto" | "spotlight" | "proportional" | "constant";

/** Per level of heat: colour times opacity, and what is kept of the image; how much brighter that is made. */
export interface Tables {
  colour: Float32Array;
  keep: Float32Array;
  gain: number;
}

/** How heat is drawn on a picture, RGBA. */
export type Blending = (image: Uint8ClampedArray) => Tables;

export type Geometry = Schemas["Geometry"];
export type Span = Schemas["SpanAnswer"];
export type Phase = Schemas["PhaseAnswer"];
export type Described = Schemas["EpisodeAnswer"];
export type Trace = Schemas["Trace"];
export type SqlRows = Schemas["SqlAnswer"];
export type Differing = Schemas["ArrayAnswer"];
export type ListedEpisode = Schemas["EpisodesRow"];
export type Overview = Schemas["Overview"];
export type Glimpse = Schemas["Glimpse"];
export type Mask = Schemas["MaskAnswer"];
export type ObjectMetric = Schemas["ObjectMetric"];
export type SqlTable = Schemas["TableAnswer"];
export type Intervention = Schemas["InterventionsRow"];
export type Curve = Schemas["CurveAnswer"];
export type FailurePrediction = Schemas["FailurePrediction"];
export type FailurePredictor = Schemas["FailurePredictor"];
export type LinearProbe = Schemas["LinearProbeAnswer"];
export type UnderWay = Schemas["UnderWayAnswer"];

/** As the service describes it, its numbers in an array. */
export type Camera = Omit<Schemas["CameraAnswer"], "coverage"> & { coverage: Float32Array };

/** As the service describes it, and in which store. */
export type Episode = Omit<Described, "cameras"> & { store: string; cameras: Record<string, Camera> };

/** Some cells of a camera's grid, both ends included. */
export interface Brush {
  camera: string;
  rows: Pair;
  cols: Pair;
}

/** Everything that the page shows; written into the address. */
export interface View {
  view: "overview" | "look" | "heads" | "actions" | "causes" | "knowledge" | "compare" | "sql";
  store: string;
  run: string;
  episode: string;
  otherRun: string;
  other: string;
  phase: string;
  query: string;
  reduce: "max" | "mean";
  weighting: "raw" | "value" | "rollout";
  layer: number;
  head: string;
  active: "image" | "lab";
  step: number;
  keyframe: number;
  brush: string;
  object: string;
  outlines: boolean;
  grid: "heads" | "layers";
  metric: string;
  matrix: "episode" | "keyframe";
  traces: string;
  camera: string;
  cmap: string;
  alpha: number;
  blend: Blend;
  interpolation: "bilinear" | "nearest";
  scale: "frame" | "episode" | "cameras";
  sinks: boolean;
  text: string;
  outcome: Listing["outcome"] | "";
  where: string;
  order: NonNullable<Listing["order"]>;
  descending: boolean;
  sql: string;
  pairing: "episodes" | "runs" | "wall" | "groups";
  wall: string;
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

export type QuestionName = keyof typeof declared.questions;
type Operation<N extends QuestionName> = operations[N extends "generated"
  ? "tokens"
  : N extends "denoising"
    ? "policy_array"
    : Exclude<N, "generated" | "denoising">];
type Told<O> = O extends { responses: { 200: { content: { "application/json": infer T } } } } ? T : never;
/** Indices are text to the service: `3`, `0,2`, `0:8`. */
type Given<P> = {
  [K in keyof P]: string | null | undefined extends P[K] ? P[K] | number : NonNullable<P[K]>;
};
type Path<O> = O extends { parameters: { path: infer P } } ? P : unknown;
type Query<O> = O extends { parameters: { query?: infer Q } } ? NonNullable<Q> : unknown;

/** A question of which only that is known. */
export interface Asked {
  name: QuestionName;
  parameters: Record<string, any>;
  /** Asked again if it is another number. */
  turn?: number;
}

/** A question, and what its endpoint of the service takes. */
export interface Question<N extends QuestionName> extends Asked {
  name: N;
  parameters: Path<Operation<N>> & Given<Query<Operation<N>>>;
}

/** What a question is answered with. */
export type Answered<N extends QuestionName> = N extends
  "maps" | "rollout" | "attention" | "policy_array" | "denoising"
  ? NumberArray
  : N extends "frame"
    ? Blob
    : Told<Operation<N>>;
