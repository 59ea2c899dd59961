import { UserError } from "./errors.js";

const MAX_PIXELS = 5e7;

/**
 * A file's image, upright as its EXIF orientation says: `bitmap`, `rgba` (0..255), `width`, `height` and `name`. Colour
 * profiles are ignored, as in Python.
 */
export async function readImage(file, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new UserError(`${name} cannot be decoded by this browser: save it as PNG, JPEG or WebP and choose that.`);
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) {
    throw new UserError(`${name} has ${width} x ${height} pixels, but at most ${MAX_PIXELS / 1e6} million are taken: choose a smaller one.`);
  }
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return { name, bitmap, width, height, rgba: context.getImageData(0, 0, width, height).data };
}
