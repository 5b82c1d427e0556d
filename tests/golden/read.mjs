// A reader of an attnstore store in another language, written from docs/format.md alone.
//
//     cd .venv/viewer && node --input-type=module - STORE < tests/golden/read.mjs
//
// prints what tests/store/test_golden.py compares with the Python reader and with the numbers that were stored.
// (By standard input, so that the libraries are found below the current directory.)

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, statSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import * as zarr from "zarrita";

const MAJOR = 1;
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

function need(holds, text) {
  if (!holds) throw new Error(text);
}

function readable(value, where) {
  const { major, minor } = value.format ?? {};
  need(Number.isInteger(major) && Number.isInteger(minor), `${where}: no format version in it`);
  need(major <= MAJOR, `${where}: format version ${major}.${minor} is newer than ${MAJOR}`);
}

function json(file) {
  const bytes = readFileSync(file);
  return { bytes, value: JSON.parse(bytes.toString("utf8")) };
}

/** A document whose last line is the SHA-256 of the others. */
function sealed(file, where) {
  const { bytes, value } = json(file);
  readable(value, where);
  const seal = /,\n "sha256": "([0-9a-f]{64})"\n}\n$/.exec(bytes.toString("utf8"));
  need(seal !== null, `${where}: not sealed`);
  const written = Buffer.concat([bytes.subarray(0, bytes.length - Buffer.byteLength(seal[0])), Buffer.from("\n}\n")]);
  need(sha256(written) === seal[1], `${where}: not what was written`);
  return { bytes, value };
}

// --- the log ---------------------------------------------------------------------------------------------

/** What counts of every part, from the entries in the order of their numbers. */
function readLog(root) {
  const folder = join(root, "commits", "log");
  const names = readdirSync(folder).filter((name) => /^\d{10}\.json$/.test(name));
  names.sort();
  const parts = new Map(); // run/episode/part -> {revision, entry}
  const runs = [];
  const discarded = [];
  let previous = null;
  names.forEach((name, index) => {
    const { bytes, value } = sealed(join(folder, name), name);
    need(value.number === index + 1 && Number(name.slice(0, 10)) === index + 1, `${name}: number ${value.number}`);
    need(value.previous === previous, `${name}: written after another entry`);
    previous = sha256(bytes);
    if (value.kind === "run") runs.push(value.run);
    if (value.kind === "discard") discarded.push(...value.attempts);
    if (value.kind !== "commit" && value.kind !== "removal") return;
    for (const id of [value.run, value.episode, value.part]) need(ID.test(id), `${name}: ${id} is no id`);
    const key = [value.run, value.episode, value.part].join("/");
    if ((parts.get(key)?.revision ?? 0) < value.revision) parts.set(key, value);
  });
  const latest = [...parts.values()].filter((entry) => entry.kind === "commit");
  return { head: names.length, tip: previous, runs, discarded, latest };
}

/** Directory of a commit's files, each of them compared with the commit. */
function checked(root, entry) {
  need(ID.test(entry.attempt), `${entry.attempt} is no id`);
  const folder = join(root, "data", entry.run, entry.episode, `${entry.part}.${entry.attempt}`);
  for (const [path, size, digest] of entry.files) {
    need(!path.includes("\\") && !path.split("/").some((s) => ["", ".", ".."].includes(s)), path);
    const file = join(folder, path);
    need(statSync(file).size === size && sha256(readFileSync(file)) === digest, `${file} is not what was committed`);
  }
  return folder;
}

// --- arrays ----------------------------------------------------------------------------------------------

/** Files below a directory, for zarrita: also ranges of them, which shards need. */
function directory(root) {
  const file = (key) => join(root, key.slice(1));
  const missing = (error) => {
    if (error.code === "ENOENT" || error.code === "ENOTDIR") return undefined;
    throw error;
  };
  return {
    get: (key) => readFile(file(key)).then((data) => new Uint8Array(data), missing),
    getRange: (key, range) =>
      readFile(file(key)).then((data) => {
        const from = "suffixLength" in range ? data.length - range.suffixLength : range.offset;
        const to = "suffixLength" in range ? data.length : range.offset + range.length;
        return new Uint8Array(data.subarray(from, to));
      }, missing),
  };
}

async function array(store, path, index) {
  const opened = await zarr.open.v3(zarr.root(store).resolve(path), { kind: "array" });
  const found = await zarr.get(opened, index);
  return { data: Array.from(found.data, Number), shape: found.shape, dims: opened.dimensionNames, attrs: opened.attrs };
}

/** log8 by its formula; the table in the root group says the same. */
function log8(code) {
  if (code === 255) return NaN;
  return code === 0 ? 0 : 2 ** ((16 * (code - 254)) / 253);
}

async function weights(store, path, precision, index) {
  const { data, shape, dims } = await array(store, `${path}/attention`, index);
  if (precision !== "log8") return { data, shape, dims };
  const lut = (await array(store, "lut", null)).data;
  for (let code = 0; code < 255; code++) {
    need(Math.abs(log8(code) - lut[code]) <= 2 ** -24 * lut[code], `lut[${code}] is ${lut[code]}`);
  }
  need(Number.isNaN(lut[255]), "lut[255] is not NaN");
  return { data: data.map((code) => lut[code]), shape, dims };
}

// --- geometry --------------------------------------------------------------------------------------------

/** Pixel of the camera's image (y, x; continuous) to patches (row, col; continuous). */
function toGrid(g, y, x) {
  const [top, left, height, width] = g.crop ?? [0, 0, ...g.source];
  let u = (y - top) / height;
  let v = (x - left) / width;
  if (g.flip_vertical) u = 1 - u;
  if (g.flip_horizontal) v = 1 - v;
  return [
    (u * g.resized[0] + g.offset[0] - g.patch_origin[0]) / g.patch[0],
    (v * g.resized[1] + g.offset[1] - g.patch_origin[1]) / g.patch[1],
  ];
}

/** The inverse. */
function toSource(g, row, col) {
  const [top, left, height, width] = g.crop ?? [0, 0, ...g.source];
  let u = (row * g.patch[0] + g.patch_origin[0] - g.offset[0]) / g.resized[0];
  let v = (col * g.patch[1] + g.patch_origin[1] - g.offset[1]) / g.resized[1];
  if (g.flip_vertical) u = 1 - u;
  if (g.flip_horizontal) v = 1 - v;
  return [u * height + top, v * width + left];
}

/** Fraction of every patch that shows source image (of patches that see no further than their boxes). */
function coverage(g) {
  need(g.receptive == null, "patches that see beyond their boxes");
  const along = [0, 1].map((axis) =>
    Array.from({ length: g.grid[axis] }, (_, i) => {
      const start = i * g.patch[axis] + g.patch_origin[axis];
      const low = Math.max(start, g.offset[axis]);
      const high = Math.min(start + g.patch[axis], g.offset[axis] + g.resized[axis]);
      return Math.max(0, high - low) / g.patch[axis];
    }),
  );
  return along[0].map((row) => along[1].map((col) => row * col));
}

// --- tables ----------------------------------------------------------------------------------------------

async function table(folder, name) {
  const data = readFileSync(join(folder, `${name}.parquet`));
  const file = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
  return parquetReadObjects({ file, compressors, utf8: false }); // bytes of images are no text
}

// --- all of it -------------------------------------------------------------------------------------------

async function readEpisode(folder) {
  const store = directory(join(folder, "attention.zarr"));
  const group = await zarr.open.v3(zarr.root(store), { kind: "group" });
  readable({ format: group.attrs.attnstore_format }, folder);
  const episode = group.attrs.attnstore_episode;
  const geometry = Object.fromEntries(Object.entries(episode.geometry).map(([c, text]) => [c, JSON.parse(text)]));
  const phases = {};
  const maps = {};
  const norms = {};
  const hidden = {};
  for (const [path, phase] of Object.entries(episode.phases)) {
    // the last keyframe, the last step of those that have steps, the last layer
    const index = [episode.frames.length - 1, ...(phase.steps === null ? [] : [phase.steps - 1]), phase.layers - 1];
    phases[path] = await weights(store, path, episode.precision, [...index, null, null, null]);
    if (phase.hidden) {
      // what enters layer 0 comes first, so the last layer is one further
      const at = index.slice(0, -1);
      hidden[path] = { mean: await array(store, `hidden/${path}/mean`, [...at, phase.layers, null, null]) };
      hidden[path].layers = (await array(store, `hidden/${path}/layer`, null)).data;
      if (phase.hidden.last) hidden[path].last = await array(store, `hidden/${path}/last`, [...at, null, null]);
      if (phase.hidden.layers) {
        hidden[path].tokens = await array(store, `hidden_tokens/${path}/state`, [...at, 0, null, null]);
        hidden[path].query = (await array(store, `hidden_tokens/${path}/query`, null)).data;
      }
    }
    if (phase.values) norms[path] = await array(store, `${path}/value_norm`, [...index, null, null]);
    for (const name of phase.query_groups) {
      for (const { camera } of phase.key.filter((span) => span.camera != null)) {
        for (const reduction of ["mean", "max"]) {
          const at = `maps/${path.split("/")[0]}/${name}/${camera}/${reduction}`;
          maps[at] = await array(store, at, [...index, null, null, null]);
        }
      }
    }
  }
  return {
    name: episode.name,
    frames: episode.frames,
    precision: episode.precision,
    spans: Object.fromEntries(
      Object.entries(episode.phases).map(([p, { key }]) => [p, key.map((s) => [s.name, s.start, s.stop])]),
    ),
    phases,
    maps,
    norms,
    hidden,
    geometry: Object.fromEntries(
      Object.entries(geometry).map(([camera, g]) => [
        camera,
        { to_grid: toGrid(g, 10.5, 20.5), to_source: toSource(g, 1.25, 2.5), coverage: coverage(g) },
      ]),
    ),
    head_stats: await table(folder, "head_stats"),
    tokens: await table(folder, "tokens"),
    frames_table: (await table(folder, "frames")).map((row) => ({ ...row, image: sha256(row.image) })),
  };
}

const root = process.argv[2];
const marker = json(join(root, "attnstore.json")).value;
readable(marker, "attnstore.json");
const log = readLog(root);
const runs = {};
for (const run of log.runs) {
  const { value } = sealed(join(root, "runs", `${run}.json`), `runs/${run}.json`);
  runs[run] = value.config;
}
const episodes = [];
const objects = [];
for (const entry of log.latest) {
  const folder = checked(root, entry);
  if (entry.part === "base") episodes.push(await readEpisode(folder));
  if (entry.part.startsWith("objects-")) objects.push(...(await table(folder, "object_stats")));
}
const said = {
  store_id: marker.store_id,
  head: log.head,
  tip: log.tip,
  runs,
  discarded: log.discarded,
  parts: log.latest.map(({ run, episode, part, revision }) => [run, episode, part, revision]),
  episodes,
  objects,
};
const plain = (_, value) => {
  if (typeof value === "bigint") return Number(value);
  return typeof value === "number" && !Number.isFinite(value) ? null : value;
};
process.stdout.write(JSON.stringify(said, plain));
