// What a hostile text must not have made, looked for inside `root`. Returns sentences; none is good.
// `wanted`: words that the text holds, which must be readable there or be part of a link's address.
(root, wanted) => {
  const TAGS = new Set(("article main section header footer nav aside div span p h1 h2 h3 h4 h5 h6 ul ol li a b i em strong del code pre br hr " +
    "blockquote table thead tbody tr th td bdi button small time svg path circle rect line polyline label input textarea select option " +
    "details summary dl dt dd mark kbd img form fieldset legend math semantics annotation mtext mn mo mi mspace mover munder munderover " +
    "msup msub msubsup mfrac mroot msqrt mtable mtr mtd mlabeledtr mrow menclose mstyle mpadded mphantom").split(" "));
  const found = [];
  for (const e of root.querySelectorAll("*")) {
    const tag = e.localName;
    if (!TAGS.has(tag)) found.push(`an element ${tag}`);
    const text = e.closest(".text, .name, .verbatim");
    for (const { name, value } of e.attributes) {
      if (name === "style" && text) found.push(`${tag} style`); // outside of texts the page sets its own, through CSSOM
      if (/^on|^srcset$|^srcdoc$|^formaction$|^background$|^poster$|^ping$|^xlink/.test(name)) found.push(`${tag} ${name}`);
      if (/^(?:id|name|action|src)$/.test(name) && text) found.push(`${tag} ${name}=${value.slice(0, 40)}`);
      if (name === "href" && text && !/^https?:\/\//.test(value)) found.push(`${tag} href=${value.slice(0, 40)}`);
      if (name === "href" && text && (/[?@]/.test(value) || e.rel.indexOf("noopener") < 0 || e.target !== "_blank")) found.push(`a link ${value.slice(0, 60)}`);
      if (name === "class" && text && /evil|chat|composer/.test(value)) found.push(`a class ${value}`);
      if (name === "src" && !/^(?:data:image\/(?:png|jpeg|gif|webp);|blob:|\/console\/api\/chats\/[\w.-]+\/pictures\/[0-9a-f]{64}$)/.test(value)) found.push(`${tag} src=${value.slice(0, 40)}`);
    }
    if (text && e !== text && !e.closest(".offscreen")) {
      const { position, zIndex } = getComputedStyle(e);
      if (!/^(?:static|relative)$/.test(position) || (zIndex !== "auto" && zIndex !== "0")) found.push(`${tag} is ${position} ${zIndex}`);
    }
    if (found.length > 5) break;
  }
  const said = root.textContent + " " + [...root.querySelectorAll("a")].map((a) => `${a.href} ${a.title}`).join(" ");
  const lost = wanted.filter((word) => !said.includes(word));
  if (lost.length) found.push(`lost: ${lost.slice(0, 5).join(" ")}`);
  if (window.hits) found.push(`${window.hits} scripts ran`);
  return found;
}
