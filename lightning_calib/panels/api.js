// Requests to our back end: always below the address that this file came from, so that a path prefix does not matter.

export class Refusal extends Error {
  constructor(text, status) {
    super(text);
    this.status = status;
  }
}

async function get(route, query) {
  const url = new URL(`./${route}`, import.meta.url);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Refusal("TensorBoard does not answer. Is it still running?", 0);
  }
  if (response.ok) return response;
  throw new Refusal(await reason(response), response.status);
}

async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error ?? text;
  } catch {
    return `TensorBoard answered with status ${response.status} to ${new URL(response.url).pathname.split("/").pop()}.`;
  }
}

export const json = async (route, query = {}) => (await get(route, query)).json();

/** A frame: the fields of its header, and `data`, its numbers as one Float32Array. */
export async function frame(route, query) {
  const buffer = await (await get(route, query)).arrayBuffer();
  if (buffer.byteLength < 4) throw new Refusal(`The answer to ${route} is cut off.`, 0);
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const size = header.shape.reduce((a, b) => a * b, 1);
  if (4 + length + 4 * size > buffer.byteLength) throw new Refusal(`The answer to ${route} is cut off.`, 0);
  return { ...header, data: floats(buffer, 4 + length, size) };
}

function floats(buffer, start, size) {
  if (start % 4 === 0) return new Float32Array(buffer, start, size);
  return new Float32Array(buffer.slice(start, start + 4 * size));
}
