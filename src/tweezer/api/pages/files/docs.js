"use strict";

const isDark = matchMedia("(prefers-color-scheme: dark)");
const applyScheme = () => document.documentElement.classList.toggle("dark-mode", isDark.matches);
isDark.addEventListener("change", applyScheme);
applyScheme();

async function showDescription() {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const spec = await answer.json();
  // Requests go to the server that sent this page, also behind a proxy that adds a prefix to paths.
  spec.servers = [{ url: new URL(".", document.baseURI).href.replace(/\/$/, "") }];
  SwaggerUIBundle({
    spec,
    dom_id: "#description",
    deepLinking: true,
    defaultModelsExpandDepth: -1,
    displayRequestDuration: true,
    docExpansion: "none",
    filter: true,
    persistAuthorization: false,
    validatorUrl: null,
  });
}

showDescription().catch((error) => {
  const problem = document.createElement("p");
  problem.className = "problem";
  problem.textContent = `The description of the API could not be loaded: ${error.message}. Reload the page to try again.`;
  document.getElementById("description").replaceChildren(problem);
});
