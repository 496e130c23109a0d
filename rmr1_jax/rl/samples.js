const field = name => document.getElementById(name);
const cards = [...document.querySelectorAll("article")].map(card => ({
  card,
  about: (card.querySelector("h3").textContent + "\n" + card.querySelector(".prompt").textContent).toLowerCase(),
  traces: [...card.querySelectorAll(".trace")].map(node => ({ node, text: node.querySelector("pre").textContent.toLowerCase() })),
}));
const total = cards.reduce((sum, { traces }) => sum + traces.length, 0);
function fits({ node, text }, about) {
  const wanted = field("text").value.toLowerCase(), outcome = field("outcome").value, reward = field("reward").value;
  const { outcome: found, truncated, reward: earned } = node.dataset;
  return (text.includes(wanted) || about.includes(wanted))
    && (!outcome || found === outcome || (outcome === "truncated" && truncated === "true"))
    && (!reward || (Number(earned) > 0) === (reward === "above"));
}
function filter() {
  let shown = 0;
  for (const { card, about, traces } of cards) {
    let some = 0;
    for (const trace of traces) {
      const fit = fits(trace, about);
      trace.node.hidden = !fit;
      some += fit;
    }
    card.hidden = !some;
    shown += some;
  }
  for (const section of document.querySelectorAll("section"))
    section.hidden = !section.querySelector("article:not([hidden])");
  field("count").textContent = shown + " of " + total + " traces";
}
for (const name of ["text", "outcome", "reward"]) field(name).addEventListener("input", filter);
field("whole").addEventListener("change", event => document.body.classList.toggle("whole", event.target.checked));
filter();
