// NumPy's file format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

/** @import {NumberArray} from "./types" */

/**
 * Read an array of float32 or float16, as float32.
 * @param {ArrayBuffer} buffer
 * @param {string[]} dims
 * @returns {NumberArray}
 */
export function parseNpy(buffer, dims) {
  const view = new DataView(buffer);
  const long = view.getUint8(6) > 1;
  const start = long ? 12 : 10;
  const stop = start + (long ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, start, stop - start));
  const type = header.match(/'descr': '([^']+)'/)?.[1];
  const sizes = header.match(/'shape': \(([^)]*)\)/)?.[1] ?? "";
  const shape = sizes
    .split(",")
    .map((s) => s.trim())
    .filter(Boolean)
    .map(Number);
  if (header.includes("'fortran_order': True")) throw new Error("npy: columns before rows");
  const named = dims.filter(Boolean);
  if (type === "<f4") return { shape, dims: named, data: new Float32Array(buffer.slice(stop)) };
  if (type === "<f2") return { shape, dims: named, data: halves(new Uint16Array(buffer.slice(stop))) };
  throw new Error(`npy: numbers of type ${type} are not expected`);
}

/** @param {Uint16Array} bits */
function halves(bits) {
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const sign = bits[i] & 0x8000 ? -1 : 1,
      exponent = (bits[i] >> 10) & 31,
      fraction = bits[i] & 1023;
    if (exponent === 31) values[i] = fraction ? NaN : sign * Infinity;
    else if (exponent) values[i] = sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
    else values[i] = sign * 2 ** -24 * fraction;
  }
  return values;
}
