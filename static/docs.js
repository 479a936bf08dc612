// Shows openapi.json with Swagger UI, in the colours that the person's system prefers.

const dark = matchMedia("(prefers-color-scheme: dark)");

function paint() {
  document.documentElement.classList.toggle("dark-mode", dark.matches);
}

dark.addEventListener("change", paint);
paint();

window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  requestSnippetsEnabled: true,
  defaultModelsExpandDepth: 0,
  // No public validator: the page sends nothing to other hosts.
  validatorUrl: null,
});
