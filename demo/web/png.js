const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const PALETTE_COLOUR = 3;
const GREY = 0;

/** What a stream of the browser makes of bytes. */
export async function throughStream(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

function checksum(bytes) {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) {
      crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
    }
  }
  return ~crc >>> 0;
}

function chunk(type, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, checksum(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

/**
 * A label map as a PNG whose values are the class indices (H, W): in 8 bits with the classes' colours, as far as they
 * go, in grey of 16 bits otherwise.
 */
export async function encodeLabelMap(classes, height, width, colors) {
  const isDeep = colors.length > 256;
  const bytesPerPixel = isDeep ? 2 : 1;
  const stride = 1 + width * bytesPerPixel;
  const rows = new Uint8Array(height * stride);
  const view = new DataView(rows.buffer);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const place = y * stride + 1 + x * bytesPerPixel;
      if (isDeep) {
        view.setUint16(place, classes[y * width + x]);
      } else {
        rows[place] = classes[y * width + x];
      }
    }
  }
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header.set([8 * bytesPerPixel, isDeep ? GREY : PALETTE_COLOUR], 8);
  const palette = isDeep ? [] : [chunk("PLTE", new Uint8Array(colors.flat()))];
  const pixels = chunk("IDAT", await throughStream(rows, new CompressionStream("deflate")));
  const parts = [new Uint8Array(SIGNATURE), chunk("IHDR", header), ...palette, pixels, chunk("IEND", new Uint8Array())];
  return new Blob(parts, { type: "image/png" });
}
