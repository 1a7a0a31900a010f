// The replay: every arm's row after the step that the slider stands at. All else on the page works without script.
(() => {
  const data = document.getElementById("replay-data");
  if (!data) return;
  const slider = document.getElementById("replay-step");
  const at = document.getElementById("replay-at");
  const play = document.getElementById("replay-play");
  const figures = [...document.querySelectorAll(".replays figure")];

  const rows = JSON.parse(data.textContent).map((arm, i) => {
    const place = figures[i].lastElementChild;
    return { ...arm, place, cells: [...place.children], told: figures[i].querySelector(".told") };
  });

  function show(step) {
    for (const row of rows) {
      const words = [...row.start];
      let fresh = new Set();
      row.steps.slice(0, step).forEach((changes) => {
        fresh = new Set(changes.map(([position]) => position));
        for (const [position, word] of changes) words[position] = word;
      });
      let filled = 0, wrong = 0, all = 0;
      row.cells.forEach((cell, i) => {
        const given = row.start[i] !== null, masked = words[i] === null;
        const mistake = row.exact && !masked && words[i] !== row.truth[i];
        if (!masked) cell.textContent = words[i];
        cell.className = masked ? "masked" : given ? "given" : "filled";
        cell.classList.toggle("wrong", mistake);
        cell.classList.toggle("fresh", !given && !masked && fresh.has(i) && step <= row.steps.length);
        all += !given;
        filled += !given && !masked;
        wrong += mistake;
      });
      row.told.textContent = `${filled} of ${all} filled` + (row.exact ? `, ${wrong} wrong` : "");
      const between = row.columns ? " " : "";
      row.place.setAttribute("aria-label", `${row.name}: ${words.map((word) => word ?? "_").join(between)}`);
    }
    at.textContent = `${step} of ${slider.max}`;
    slider.setAttribute("aria-valuetext", `after step ${step} of ${slider.max}`);
  }

  let timer = null;
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  }
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    show(Number(slider.value));
    const pause = Math.max(60, Math.min(400, 9000 / Number(slider.max)));
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show(Number(slider.value));
      if (slider.value === slider.max) stop();
    }, pause);
  });
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  window.addEventListener("beforeprint", () => { stop(); slider.value = slider.max; show(Number(slider.max)); });
  show(Number(slider.value));
})();
