// SPDX-License-Identifier: Apache-2.0
// What the pages can do besides links and forms: follow the server live, keep what a person has begun,
// tick all devices, show an upload's progress. Without it everything works, and live pages reload.
"use strict";

// A live page is morphed into its new state. What the person changed is theirs: ticks, open details, text.
const theirs = { checked: "INPUT", value: "INPUT", selected: "OPTION", open: "DETAILS" };
Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, element) =>
  !(theirs[name] === element.tagName && !(element.type === "hidden" || element.type === "submit"));

const live = () => document.querySelector("#live");

function say(text, isLost) {
  const place = live();
  if (place && place.textContent !== text) {
    place.textContent = text;
    place.classList.toggle("lost", isLost);
  }
}
document.addEventListener("htmx:sseOpen", () => say("live", false));
document.addEventListener("htmx:sseError", () => say("connection lost, trying again", true));
document.addEventListener("htmx:sendError", () => say("connection lost, trying again", true));
document.addEventListener("htmx:responseError", (event) => {
  // Logged out, or the thing is gone: the server's own page says it.
  if ([401, 403, 404].includes(event.detail.xhr.status)) window.location.reload();
});

// "All of this page" ticks the boxes of its form.
document.addEventListener("change", (event) => {
  const box = event.target;
  if (box.matches("input[data-all]")) {
    for (const other of document.querySelectorAll(`input[name="${box.dataset.all}"]`)) other.checked = box.checked;
  }
});

// An upload of gigabytes shows how far it is. The form itself is the one that works without this.
document.addEventListener("submit", (event) => {
  const form = event.target;
  const bar = form.querySelector("progress[data-upload]");
  if (!bar) return;
  event.preventDefault();
  const words = form.querySelector("[data-upload-words]");
  const button = form.querySelector("button");
  const request = new XMLHttpRequest();
  request.open("POST", form.action);
  request.upload.onprogress = (step) => {
    bar.value = step.loaded / step.total;
    words.textContent = `${Math.floor(bar.value * 100)} % of ${(step.total / 1048576).toFixed(1)} MiB`;
  };
  request.upload.onload = () => { words.textContent = "checking the artifact"; };
  request.onerror = () => { words.textContent = "the connection broke; try again"; button.disabled = false; };
  request.onload = () => {
    if (request.responseURL && request.status < 400) window.location.assign(request.responseURL);
    else {
      const text = new DOMParser().parseFromString(request.responseText, "text/html");
      document.querySelector("main").replaceChildren(...text.querySelector("main").childNodes);
    }
  };
  bar.hidden = false;
  button.disabled = true;
  request.send(new FormData(form));
});
