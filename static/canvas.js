/** Drawing sharply on screens of any density. */

/** Clear a canvas, at the size it is shown in; return that in CSS pixels, and the context. */
export function prepareCanvas(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const [columns, rows] = [Math.round(width * devicePixelRatio), Math.round(height * devicePixelRatio)];
  // Setting the size reallocates the canvas; most frames only need to clear it.
  if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
  const context = canvas.getContext("2d");
  context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { width, height, context };
}
