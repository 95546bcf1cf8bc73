(function () {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const press = (button, group) => group.forEach((b) => b.setAttribute("aria-pressed", b === button));
  const make = (text) => Object.assign(document.createElement("button"), { type: "button", textContent: text });

  // Tasks by outcome.
  const filters = document.querySelector(".filters");
  if (filters) {
    const tasks = all(".task");
    const outcomes = [...new Set(tasks.map((task) => task.dataset.outcome))];
    const buttons = ["All", ...outcomes].map((name) => {
      const count = name === "All" ? tasks.length : tasks.filter((task) => task.dataset.outcome === name).length;
      const button = make(name + " " + count);
      button.onclick = () => {
        press(button, buttons);
        tasks.forEach((task) => { task.hidden = name !== "All" && task.dataset.outcome !== name; });
      };
      return button;
    });
    if (outcomes.length > 1) { filters.append(...buttons); press(buttons[0], buttons); }
  }

  // One trajectory of a task at a time; the last one, after RL, first.
  all(".task").forEach((task) => {
    const tabs = task.querySelector(".tabs"), variants = all(".variant", task);
    const buttons = variants.map((variant) => {
      const button = make(variant.dataset.label);
      button.onclick = () => { press(button, buttons); variants.forEach((v) => { v.hidden = v !== variant; }); };
      return button;
    });
    tabs.prepend(...buttons);
    if (buttons.length) buttons[buttons.length - 1].click();
    const unfold = tabs.querySelector(".unfold");
    let open = false;
    unfold.onclick = () => {
      open = !open;
      all(".turn", task).forEach((turn) => { turn.open = open; });
      unfold.textContent = open ? "Fold all turns" : "Unfold all turns";
    };
  });

  // A narrow screen begins with the first two groups of charts.
  if (matchMedia("(max-width: 760px)").matches) all(".group").slice(2).forEach((group) => { group.open = false; });

  // Reading a chart by pointing at it.
  all("svg[data-points]").forEach((svg) => {
    const points = svg.dataset.points.split(" ").map((p) => p.split(",")).map((p) => [+p[0], +p[1], p[2], p.slice(3).join(",")]);
    const reading = svg.parentNode.querySelector("figcaption span"), usual = reading.textContent;
    let cursor = null;
    const clear = () => { if (cursor) cursor.remove(); cursor = null; reading.textContent = usual; };
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      const near = points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      clear();
      cursor = document.createElementNS(svg.namespaceURI, "g");
      cursor.innerHTML = `<line class="cursor" x1="${near[0]}" x2="${near[0]}" y1="${svg.dataset.top}" y2="${svg.dataset.bottom}"></line><circle class="knob" cx="${near[0]}" cy="${near[1]}" r="3"></circle>`;
      svg.append(cursor);
      reading.textContent = "update " + near[2] + ": " + near[3];
    });
  });
})();
